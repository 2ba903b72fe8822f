#!/usr/bin/env bash
# An MPS that somebody else runs, as gpulet-mps.service does: gpuletd uses it, answers, and leaves it
# alone.
#
#   bench/gpu/adopt.sh BIN MODEL...     prints JSON: models that answered, whether MPS outlived gpuletd
set -euo pipefail
. "$(dirname "$0")/../ready.sh"
bin=$1
shift
folder=$(mktemp -d /tmp/gpulet-adopt.XXXXXX) # short: MPS has sockets in it
export CUDA_MPS_PIPE_DIRECTORY=$folder/mps/pipe CUDA_MPS_LOG_DIRECTORY=$folder/mps/log
export CUDA_MPS_PROTOCOL_VERSION=2
daemon=
mps=
finish() {
  [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
  [ -z "$mps" ] || echo "quit -t 5" | timeout 20 nvidia-cuda-mps-control >/dev/null || true
  wait
  rm -rf "$folder"
}
trap finish EXIT

mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY" "$folder/models"
for model in "$@"; do
  ln -s "$model" "$folder/models/"
done
cat >"$folder/gpuletd.toml" <<TOML
socket = "$folder/gpuletd.sock"
models = ["$folder/models"]
[access]
users = ["$(id -u)"]
[cuda]
kernel_cache = "$folder/kernels"
[mps]
directory = "$folder/mps"
adopt = true
[[gpulet]]
name = "half"
mechanism = "mps"
device = 0
share_pct = 50
TOML

nvidia-cuda-mps-control -f >/dev/null 2>&1 &
mps=$!
for _ in $(seq 100); do
  [ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ] && break
  sleep 0.1
done
"$bin/gpuletd" --config "$folder/gpuletd.toml" >&2 &
daemon=$!
export GPULET_SOCKET=$folder/gpuletd.sock
wait_until_ready "$bin" $daemon
answered=0
for model in "$@"; do
  "$bin/gpuletctl" infer "$(basename "$model")" --fill random >/dev/null && answered=$((answered + 1))
done
servers=$(echo get_server_list | nvidia-cuda-mps-control | wc -w)
kill "$daemon"
wait "$daemon" || true
daemon=
sleep 1
left=0
kill -0 "$mps" && echo get_server_list | timeout 10 nvidia-cuda-mps-control >/dev/null && left=1
echo "{\"answered\": $answered, \"servers\": $servers, \"left_alone\": $left}"
