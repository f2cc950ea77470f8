# Sourced before cargo: where setup put libclang, if it did.
loopgate_clang="${LOOPGATE_CACHE:-$HOME/.cache/loopgate}/libclang"
if [ -z "${LIBCLANG_PATH:-}" ] && [ -e "$loopgate_clang/libclang.so" ]; then
  export LIBCLANG_PATH="$loopgate_clang"
  # The wheel has no compiler headers; GCC's own serve.
  export BINDGEN_EXTRA_CLANG_ARGS="-I$(dirname "$(c++ -print-file-name=include/stddef.h)")"
fi
