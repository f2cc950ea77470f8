#!/usr/bin/env bash
# Checks bans, licences and sources offline; builds cargo-deny from crates.io where it is missing.
set -euo pipefail

version=0.20.2
root="${LOOPGATE_CACHE:-$HOME/.cache/loopgate}/cargo-deny-$version"
if [ ! -x "$root/bin/cargo-deny" ]; then
  echo "setup: building cargo-deny $version into $root"
  CARGO_TARGET_DIR="$root/build" cargo install -q --locked --root "$root" "cargo-deny@$version"
  rm -rf "$root/build"
fi
# The sources of all crates must be at hand: their licences are read.
cargo fetch -q --locked
"$root/bin/cargo-deny" --offline --all-features check bans licenses sources
