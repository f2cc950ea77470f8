#!/usr/bin/env bash
# Installs what building and running needs and is missing, and says what it does:
#   a C++ compiler and libclang (Debian's packages, or libclang from PyPI), ONNX Runtime (PyPI).
# Nothing is done twice; with everything in place it prints nothing.
set -euo pipefail

cache="${LOOPGATE_CACHE:-$HOME/.cache/loopgate}"
say() { echo "setup: $*"; }

command -v cargo >/dev/null 2>&1 || { say "Rust is missing: install it from https://rustup.rs"; exit 1; }

debian_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  say "installing $* from Debian's packages"
  "${as_root[@]}" apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

has_libclang() {
  # Not libclang-cpp.so, which comes with LLVM and does not serve.
  [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so' ||
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null ||
    compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null || [ -e "$cache/libclang/libclang.so" ]
}

if ! command -v c++ >/dev/null 2>&1; then
  debian_install g++ || { say "a C++ compiler is missing and could not be installed: install g++"; exit 1; }
fi

# RocksDB's bindings are generated with libclang.
if ! has_libclang && ! debian_install libclang-dev; then
  say "fetching libclang from PyPI into $cache/libclang"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download -q --no-deps --only-binary=:all: -d "$work" libclang==18.1.1
  python3 -m zipfile -e "$work"/libclang-*.whl "$work"
  mkdir -p "$cache/libclang"
  find "$work" -name libclang.so -exec mv {} "$cache/libclang/libclang.so" \;
fi

"$(dirname "$0")/onnxruntime.sh" "$cache/onnxruntime"
