#!/usr/bin/env bash
# Two gpulets of half a GPU: one has more than it can do, the other nearly nothing. With and without
# lending, in turns.
#
#   bench/gpu/lend.sh BIN MODEL HOST RATE     prints JSON: what part of the requests for MODEL, RATE a
#                                             second, and for HOST, 50 a second, was answered in time
set -euo pipefail
. "$(dirname "$0")/../ready.sh"
bin=$1 model=$2 host=$3 rate=$4
slo_ms=25
seconds=3
folder=$(mktemp -d /tmp/gpulet-lend.XXXXXX)
daemon=
finish() {
  [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
  wait
  rm -rf "$folder"
}
trap finish EXIT
mkdir -p "$folder/models"
ln -s "$model" "$host" "$folder/models/"
guest=$(basename "$model")
owner=$(basename "$host")
export GPULET_SOCKET=$folder/gpuletd.sock

attainment() { # FILE
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["settings"]["attainment_pct"])' "$1"
}

found= # what part was in time, of the model's requests and of the host's
measure() { # LINE of the idle gpulet
  cat >"$folder/gpuletd.toml" <<TOML
socket = "$GPULET_SOCKET"
models = ["$folder/models"]
[access]
users = ["$(id -u)"]
[cuda]
kernel_cache = "$folder/kernels"
[[gpulet]]
name = "full"
mechanism = "green"
device = 0
share_pct = 50
models = ["$guest"]
[[gpulet]]
name = "idle"
mechanism = "green"
device = 0
share_pct = 50
models = ["$owner"]
$1
TOML
  "$bin/gpuletd" --config "$folder/gpuletd.toml" >&2 &
  daemon=$!
  wait_until_ready "$bin" $daemon
  "$bin/gpulet-bench" load "$guest" --rate "$rate" --duration $seconds --slo-ms $slo_ms \
    --json "$folder/guest.json" >&2 &
  load=$!
  "$bin/gpulet-bench" load "$owner" --rate 50 --duration $seconds --slo-ms $slo_ms \
    --json "$folder/owner.json" >&2
  wait $load
  kill "$daemon"
  wait "$daemon" || true
  daemon=
  found="$(attainment "$folder/guest.json") $(attainment "$folder/owner.json")"
}

alone=() lent=()
for _ in 1 2 3; do
  measure ""
  alone+=("$found")
  measure "guests = [\"$guest\"]"
  lent+=("$found")
done
python3 - "$rate" "${#alone[@]}" "${alone[@]}" "${lent[@]}" <<'PYTHON'
import json
import statistics
import sys

rate, times, *pairs = sys.argv[1:]
pairs = [[float(part) for part in pair.split()] for pair in pairs]
rounds = {"alone": pairs[:int(times)], "lent": pairs[int(times):]}
print(json.dumps({
    "rate": float(rate),
    **{f"{who}_{how}_pct": statistics.median(pair[index] for pair in found)
       for how, found in rounds.items() for index, who in enumerate(("guest", "owner"))},
    "rounds": rounds,
}))
PYTHON
