#!/usr/bin/env bash
# Fetches ONNX's own models of single operators, with their data, from the wheel of onnx on PyPI
# into FOLDER, and prints the folder. Only the data is kept; with it in place nothing is fetched.
#   node-models.sh [FOLDER]
set -euo pipefail

version=1.22.0
folder="${1:-${LOOPGATE_CACHE:-$HOME/.cache/loopgate}/onnx-node-$version}"
# The data is the same in the wheels of all platforms.
sha256=955e02e1f6d385b53d52f9cd7b9cdf5caf417c300bcfe3c64c6d542be763845b
say() { echo "node-models: $*" >&2; }

if [ ! -d "$folder" ]; then
  say "fetching the wheel of onnx $version (19 MB) from PyPI; its node models go into $folder"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --platform manylinux_2_27_x86_64 \
    -d "$work" "onnx==$version" >&2
  wheel=$(echo "$work"/onnx-*.whl)
  if ! echo "$sha256  $wheel" | sha256sum --check --status; then
    say "the wheel does not have the expected sha256 $sha256: not unpacked"
    exit 1
  fi
  mkdir -p "$(dirname "$folder")"
  partial=$(mktemp -d "$folder.XXXXXX")
  python3 - "$wheel" "$partial" <<'PYTHON'
import pathlib, sys, zipfile
prefix = "onnx/backend/test/data/node/"
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith(prefix) and not name.endswith("/"):
            target = pathlib.Path(sys.argv[2], name.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(name))
PYTHON
  chmod 755 "$partial"
  mv "$partial" "$folder"
fi
echo "$folder"
