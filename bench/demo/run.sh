#!/usr/bin/env bash
# Starts gpuletd on a socket of its own with the models digits and crepe, compiles the C client against
# the header and library of this tree, and lets it ask. Needs `make build` and .ci/setup.sh demo.
set -euo pipefail
cd "$(dirname "$0")/../.."
. bench/ready.sh

build=${BUILD:-target/release}
library=$(realpath "${CLIENT_LIB:-target/client-lib}")
work=$(mktemp -d)
daemon=
finish() {
  [ -z "$daemon" ] || kill "$daemon" 2>/dev/null && wait "$daemon" || true
  rm -rf "$work"
}
trap finish EXIT

/usr/bin/python3 resource/models/export.py target/models --only crepe

cc -std=c11 -O2 -Wall -Wextra -Werror -pedantic -Iinclude bench/demo/demo.c -o "$work/demo" \
  -L"$library" -lgpulet -Wl,-rpath,"$library" -lm

mkdir "$work/models"
cp -r resource/models/digits target/models/crepe "$work/models/"
cat >"$work/gpuletd.toml" <<TOML
socket = "$work/gpuletd.sock"
models = ["$work/models"]
[access]
users = ["$(id -u)"]
TOML
export GPULET_SOCKET=$work/gpuletd.sock
"$build/gpuletd" --config "$work/gpuletd.toml" &
daemon=$!
wait_until_ready "$build" $daemon
echo
"$work/demo" "$GPULET_SOCKET" resource/models/digits/held-out.bin
