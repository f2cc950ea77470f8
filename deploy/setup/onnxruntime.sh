#!/usr/bin/env bash
# Fetches ONNX Runtime's library from PyPI's wheel into FOLDER, checked by its sha256.
# Without it Loopgate serves with its other engines, so a failure here is told and not fatal.
#   onnxruntime.sh FOLDER
set -euo pipefail

folder="$1"
version=1.32.0
library="$folder/libonnxruntime.so"
say() { echo "setup: $*"; }

[ -n "${LOOPGATE_ORT_LIB:-}" ] && exit 0
[ -e "$library" ] && exit 0
if [ "$(uname -m)" != x86_64 ]; then
  say "no checked ONNX Runtime for $(uname -m): set LOOPGATE_ORT_LIB to a libonnxruntime.so to use one"
  exit 0
fi
sha256=6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f

say "fetching ONNX Runtime $version from PyPI into $folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 \
  --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 \
  -d "$work" "onnxruntime==$version" >"$work/pip.log" 2>&1; then
  say "could not fetch ONNX Runtime (python3 with pip is needed); going on with the built-in engines"
  exit 0
fi
python3 -m zipfile -e "$work"/onnxruntime-*.whl "$work/wheel"
found="$work/wheel/onnxruntime/capi/libonnxruntime.so.$version"
if ! echo "$sha256  $found" | sha256sum --check --status; then
  say "the library in the wheel does not have the expected sha256 $sha256: not installed"
  exit 1
fi
mkdir -p "$folder"
cp "$found" "$library.partial"
mv "$library.partial" "$library"
