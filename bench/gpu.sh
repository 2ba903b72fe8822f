#!/usr/bin/env bash
# Checks and times everything that needs a GPU, and ends with one table of what was aimed at and what
# was measured; skips with a reason where there is none.
#
#   bench/gpu.sh [BIN] [PART...]     BIN: a folder of release binaries, target/release without
#
# The binaries may come from another machine: what must be built where it runs, the shims, is built
# here, for the torch that python3 has or that $LIBTORCH_DIR names. Models are exported by that python
# to $MODELS (/tmp/gpulet-models) once; what the benches find out goes to $RESULTS
# (/tmp/gpulet-results), where it stays: the table is of all that is there. Where time is short: $DRILLS
# GPU faults under mps (50), $HARMS of each other harm (4), $CYCLES models loaded and unloaded under mps
# (50), at which $SHARES below 100 % latencies are taken, and which models of the paper, $PAPER, are
# exported and compared. PART, all without but profile: kernels answers latency coexist change drill
# harm cold share adopt lend two profile. `two` needs two GPUs, and is left out where there is one.
# Latencies are those of tf32, which is what PyTorch computes convolutions in by default.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin=$(readlink -f "${1:-$here/target/release}")
shift || true
parts=${*:-kernels share adopt lend coexist latency answers change cold harm two drill}
models=${MODELS:-/tmp/gpulet-models}
results=${RESULTS:-/tmp/gpulet-results}
shares=${SHARES-10 20 40 60}
paper=${PAPER:-lenet googlenet resnet50 ssd vgg16 mnasnet1_0 mobilenet_v2 densenet161 bert}

skip() {
  echo "gpu.sh: skipped: $*"
  exit 0
}

step() {
  printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"
}

gpus=$(nvidia-smi -L 2>/dev/null | grep -c GPU || true)
[ "$gpus" -gt 0 ] || skip "no NVIDIA GPU here"
torch=${LIBTORCH_DIR:-$(python3 -c 'import torch; print(torch.__path__[0])' 2>/dev/null || true)}
[ -e "$torch/lib/libtorch_cuda.so" ] || skip "no libtorch for CUDA: set LIBTORCH_DIR to a torch folder"
export LIBTORCH_DIR=$torch
PATH=$bin:$PATH

step "what is here"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
mkdir -p "$results"
rm -f "$results/failed"
gpuletctl devices

step "shims and models"
"$here/ffi/torch/build-shims.sh" "$torch" "$bin" >"$results/shims.log" 2>&1 &
shims=$!
python3 "$here/resource/models/export.py" "$models" --only "${paper// /,}" | tail -1
wait $shims || {
  cat "$results/shims.log"
  exit 1
}
[ -e "$models/crepe" ] || cp -r "$here/target/models/crepe" "$models/" 2>/dev/null || echo "no crepe"
variant() { # NAME SUFFIX LINE...: the same archive under another name, with lines before its own
  mkdir -p "$models/$1_$2"
  ln -sfn "$models/$1/model.pt" "$models/$1_$2/model.pt"
  { printf '%s\n' "${@:3}"; cat "$models/$1/model.toml"; } >"$models/$1_$2/model.toml"
}
variant resnet50 fp16 'precision = "fp16"'
variant resnet50 tf32 'precision = "tf32"'
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
variant resnet50_u8 tf32 'precision = "tf32"'
python3 "$here/bench/gpu/hungry.py" "$models/hungry"

bench() { # SECONDS FILE ARGUMENTS...: a bench, whose JSON goes to FILE; what fails is told at the end
  rm -f "$results/$2.json"
  # In the foreground, so that whoever ends this script ends the bench as well.
  timeout --foreground "$1" gpulet-bench "${@:3}" --json "$results/$2.json" 2>"$results/$2.log" || {
    tail -20 "$results/$2.log"
    echo "$2" >>"$results/failed"
  }
}

run() { # PART
  digits=$here/resource/models/digits
  case $1 in
    kernels)
      if [ -x "$bin/selfcheck" ]; then
        GPULET_NVRTC=$torch timeout 120 "$bin/selfcheck" --quick
      else
        echo "no selfcheck in $bin: cargo build --release -p gpulet-kernels --example selfcheck"
      fi
      ;;
    answers)
      folders=("$digits" "$models/resnet50_u8")
      for model in $paper crepe; do
        [ -d "$models/$model" ] && folders+=("$models/$model")
      done
      bench 300 answers answers "${folders[@]}" --mechanism green,mps --shares 100,40 --rows 1,3,8
      ;;
    latency)
      e2e() { # FILE MODEL MECHANISM SHARE ROUNDS REQUESTS
        bench 120 "e2e-$1" e2e --model "$models/$2" --mechanism "$3" --share "$4" --busy \
          --rounds "$5" --requests "$6"
      }
      e2e u8 resnet50_u8_tf32 green 100 7 200
      e2e green-mps-100 resnet50_tf32 green-mps 100 5 60
      for mechanism in green mps; do
        e2e $mechanism-100 resnet50_tf32 $mechanism 100 7 200
        for share in $shares; do
          e2e $mechanism-$share resnet50_tf32 $mechanism $share 5 60
        done
      done
      ;;
    coexist)
      for mechanism in mps green; do
        bench 120 coexist-$mechanism coexist --model "$models/resnet50_fp16" \
          --mechanism $mechanism --rounds 3
      done
      plain="timeout 120 python3 $here/bench/gpu/plain.py $models/resnet50/model.pt --seconds 4"
      $plain | tee "$results/plain-fp32.json"
      $plain --half | tee "$results/plain-fp16.json"
      ;;
    change)
      for mechanism in mps green; do
        bench 120 change-$mechanism change --model "$models/resnet50_tf32" --mechanism $mechanism \
          --times 6 --timeline "$results/change-$mechanism.csv" \
          --log "$results/change-$mechanism.daemon.log"
      done
      ;;
    drill)
      bench 400 drill-mps drill --model "$digits" --mechanism mps --times "${DRILLS:-50}"
      bench 120 drill-green drill --model "$digits" --mechanism green --times 5
      ;;
    harm)
      harm="drill --model $digits --hungry $models/hungry --harm executor,hang,memory,batch"
      # shellcheck disable=SC2086
      bench 120 harm-mps $harm,mps --mechanism mps --times "${HARMS:-4}" \
        --log "$results/harm-mps.daemon.log"
      # shellcheck disable=SC2086
      bench 120 harm-green $harm --mechanism green --times 2
      ;;
    cold)
      bench 200 cold-mps cold --model "$models/resnet50" --max-batch 8 --mechanism mps \
        --times "${CYCLES:-50}"
      bench 120 cold-green cold --model "$models/resnet50" --max-batch 8 --mechanism green --times 5
      ;;
    share)
      timeout 120 gpuletctl prove-share --shares 25,25,25,25 --held green --json \
        >"$results/prove-share.json"
      ;;
    adopt)
      timeout 120 "$here/bench/gpu/adopt.sh" "$bin" "$digits" >"$results/adopt.json"
      ;;
    lend)
      timeout 180 "$here/bench/gpu/lend.sh" "$bin" "$models/resnet50_tf32" "$digits" 4000 \
        >"$results/lend.json"
      ;;
    two)
      [ "$gpus" -ge 2 ] || {
        echo "left out: there is one GPU"
        return
      }
      for mechanism in mps green; do
        bench 120 two-drill-$mechanism drill --model "$digits" --mechanism $mechanism \
          --devices 0,1 --times 4
      done
      bench 120 two-coexist coexist --model "$models/resnet50_fp16" --mechanism mps \
        --devices 0,1 --rounds 3
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

# A part that fails is told at the end; the others are still worth knowing.
for part in $parts; do
  step "$part"
  (set -e; run "$part") & # a shell of its own: errexit holds in it
  wait $! || echo "$part" >>"$results/failed"
done
step "all done"
gpulet-bench table "$results" || echo table >>"$results/failed"
if [ -e "$results/failed" ]; then
  echo "gpu.sh: failed: $(tr '\n' ' ' <"$results/failed")"
  exit 1
fi
