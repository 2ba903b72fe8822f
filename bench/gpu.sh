#!/usr/bin/env bash
# Checks and times everything that needs a GPU, and prints it; skips with a reason where there is none.
#
#   bench/gpu.sh [BIN] [PART...]     BIN: a folder of release binaries, target/release without
#
# The binaries may come from another machine: what must be built where it runs, the shims, is built
# here, for the torch that python3 has or that $LIBTORCH_DIR names. Models are exported by that python
# to $MODELS (/tmp/gpulet-models) once. PART: kernels answers latency coexist drill share profile; all
# without.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin=$(readlink -f "${1:-$here/target/release}")
shift || true
parts=${*:-kernels answers latency coexist drill share}
models=${MODELS:-/tmp/gpulet-models}
paper="lenet googlenet resnet50 ssd vgg16 mnasnet1_0 mobilenet_v2 densenet161 bert"

skip() {
  echo "gpu.sh: skipped: $*"
  exit 0
}

step() {
  printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"
}

command -v nvidia-smi >/dev/null && nvidia-smi -L | grep -q GPU || skip "no NVIDIA GPU here"
torch=${LIBTORCH_DIR:-$(python3 -c 'import torch; print(torch.__path__[0])' 2>/dev/null || true)}
[ -e "$torch/lib/libtorch_cuda.so" ] || skip "no libtorch for CUDA: set LIBTORCH_DIR to a torch folder"
export LIBTORCH_DIR=$torch
PATH=$bin:$PATH

step "what is here"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
gpuletctl devices
"$here/ffi/torch/build-shims.sh" "$torch" "$bin"

step "models"
python3 "$here/resource/models/export.py" "$models" --only "${paper// /,}" | tail -1
[ -e "$models/crepe" ] || cp -r "$here/target/models/crepe" "$models/" 2>/dev/null || echo "no crepe"
variant() { # NAME SUFFIX LINE...: the same archive under another name, with lines before its own
  mkdir -p "$models/$1_$2"
  ln -sfn "$models/$1/model.pt" "$models/$1_$2/model.pt"
  { printf '%s\n' "${@:3}"; cat "$models/$1/model.toml"; } >"$models/$1_$2/model.toml"
}
variant resnet50 fp16 'precision = "fp16"'
variant resnet50 u8
python3 - "$models/resnet50_u8/model.toml" <<'PYTHON'
import sys
path = sys.argv[1]
text = open(path).read().replace(
    'dtype = "f32"\nshape = [-1, 3, 224, 224]',
    'dtype = "u8"\nshape = [-1, 224, 224, 3]\n'
    'normalise = { mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }')
open(path, "w").write(text)
PYTHON

run() { # PART
  case $1 in
    kernels)
      if [ -x "$bin/selfcheck" ]; then
        GPULET_NVRTC=$torch timeout 120 "$bin/selfcheck" --quick
      else
        echo "no selfcheck in $bin: cargo build --release -p gpulet-kernels --example selfcheck"
      fi
      ;;
    answers)
      folders=("$here/resource/models/digits" "$models/resnet50_u8")
      for model in $paper crepe; do
        [ -d "$models/$model" ] && folders+=("$models/$model")
      done
      for mechanism in green mps; do
        timeout 300 gpulet-bench answers "${folders[@]}" --mechanism $mechanism --shares 100,25
      done
      ;;
    latency)
      for model in resnet50 resnet50_u8 mobilenet_v2; do
        timeout 120 gpulet-bench e2e --model "$models/$model" --mechanism green --share 100 --busy \
          --rounds 11 --requests 200
      done
      timeout 120 gpulet-bench e2e --model "$models/resnet50" --mechanism green --share 100 \
        --rounds 11 --requests 200
      for share in 10 20 40 60; do
        timeout 120 gpulet-bench e2e --model "$models/resnet50" --mechanism green --share $share \
          --busy --rounds 5 --requests 100
      done
      ;;
    coexist)
      for mechanism in mps green; do
        timeout 120 gpulet-bench coexist --model "$models/resnet50_fp16" --mechanism $mechanism
      done
      timeout 120 python3 "$here/bench/gpu/plain.py" "$models/resnet50/model.pt"
      timeout 120 python3 "$here/bench/gpu/plain.py" "$models/resnet50/model.pt" --half
      ;;
    drill)
      for mechanism in mps green; do
        timeout 300 gpulet-bench drill --model "$here/resource/models/digits" \
          --mechanism $mechanism --times "${DRILLS:-10}"
      done
      ;;
    share)
      timeout 120 gpuletctl prove-share --shares 25,25,25,25 --held green
      ;;
    profile)
      timeout 590 gpuletctl profile --models "$models" --out "$here/resource/profiles"
      ;;
    *)
      echo "gpu.sh: $1 is no part" >&2
      return 2
      ;;
  esac
}

# A part that fails is said at the end; the others are still worth knowing.
failed=()
for part in $parts; do
  step "$part"
  (set -e; run "$part") & # a shell of its own: errexit holds in it
  wait $! || failed+=("$part")
done
step "all done"
if [ ${#failed[@]} -ne 0 ]; then
  echo "gpu.sh: failed: ${failed[*]}"
  exit 1
fi
