#!/usr/bin/env bash
# Generates the gRPC messages and their descriptors from gateway/proto, with pinned tools: protoc from
# PyPI's grpcio-tools, protoc-gen-prost from crates.io. What comes out is checked in, so that building
# needs neither.
#   protos.sh          writes gateway/proto/generated
#   protos.sh --check  fails where that folder is not what would be written
set -euo pipefail

grpcio_tools=1.81.1
protoc_gen_prost=0.5.0
cache="${LOOPGATE_CACHE:-$HOME/.cache/loopgate}"
root="$(cd "$(dirname "$0")/../.." && pwd)"
say() { echo "setup: $*"; }

python="$cache/grpcio-tools-$grpcio_tools/bin/python"
if [ ! -x "$python" ]; then
  say "fetching protoc (grpcio-tools $grpcio_tools) into $cache"
  python3 -m venv "$cache/grpcio-tools-$grpcio_tools"
  "$python" -m pip install -q --only-binary=:all: "grpcio-tools==$grpcio_tools"
fi
plugin="$cache/protoc-gen-prost-$protoc_gen_prost"
if [ ! -x "$plugin/bin/protoc-gen-prost" ]; then
  say "building protoc-gen-prost $protoc_gen_prost into $plugin"
  CARGO_TARGET_DIR="$plugin/build" cargo install -q --locked --root "$plugin" "protoc-gen-prost@$protoc_gen_prost"
  rm -rf "$plugin/build"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/modules" "$work/generated"
cd "$root/gateway/proto"
"$python" -m grpc_tools.protoc -I. --include_imports \
  --plugin="$plugin/bin/protoc-gen-prost" --prost_out="$work/modules" --prost_opt=bytes=.inference \
  --descriptor_set_out="$work/generated/descriptor.bin" \
  inference.proto grpc/health/v1/health.proto
find "$work/modules" -name '*.rs' -exec mv {} "$work/generated/" \;

if [ "${1:-}" = --check ]; then
  diff -r "$work/generated" generated || { say "gateway/proto/generated is stale: run deploy/setup/protos.sh"; exit 1; }
else
  rm -rf generated
  mv "$work/generated" generated
fi
