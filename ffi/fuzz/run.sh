#!/usr/bin/env bash
# Builds the fuzz targets and runs them: run.sh [SECONDS_PER_TARGET (10)] [TARGET...]
#
# Needs clang and its libFuzzer (Debian: clang libclang-rt-14-dev), and stable Rust. As many targets
# run at a time as there are cores. Fails on a panic, an input that takes 10 s, or 1 GiB of memory,
# and says where the input is. What the targets find in passing is kept in target/fuzz-corpus; the
# seeds in corpus/ are never written.
set -euo pipefail
cd "$(dirname "$0")"

here=$PWD
seconds=${1:-10}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(submissions frames header config model messages)
case $seconds in
  '' | *[!0-9]*)
    echo "fuzz: seconds must be a number, is '$seconds'" >&2
    exit 2
    ;;
esac
for target in "${targets[@]}"; do
  [ -d "corpus/$target" ] || { echo "fuzz: there is no target '$target'" >&2; exit 2; }
done

cd ../..
root=$PWD
out=${CARGO_TARGET_DIR:-$root/target}/fuzz
found=${CARGO_TARGET_DIR:-$root/target}/fuzz-corpus
platform=$(rustc -vV | sed -n 's/^host: //p')

# No target runs a model, so the shim of libtorch need not be compiled: no C++ compiler, no shim.
mkdir -p "$out/bin" "$out/log" "$out/finding"
echo "fuzz: building"
if ! CXX=/nonexistent RUSTC_WRAPPER="$here/rustc.sh" cargo rustc --quiet --locked \
  -p gpulet-fuzz --lib --crate-type staticlib \
  --profile fuzz --target "$platform" --target-dir "$out" >"$out/log/build" 2>&1; then
  cat "$out/log/build" >&2
  exit 1
fi
archive=$out/$platform/fuzz/libgpulet_fuzz.a
${CLANG:-clang} -fsanitize=fuzzer "$archive" -o "$out/bin/all" -lpthread -ldl -lm
for target in "${targets[@]}"; do
  ln -f "$out/bin/all" "$out/bin/$target"
done

run() {
  local target=$1 log=$out/log/$1 dictionary=()
  mkdir -p "$found/$target"
  [ ! -f "$here/dictionary/$target" ] || dictionary=("-dict=$here/dictionary/$target")
  "$out/bin/$target" "-max_total_time=$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
    -entropic=0 -print_final_stats=1 "-artifact_prefix=$out/finding/$target-" "${dictionary[@]}" \
    "$found/$target" "$here/corpus/$target" >"$log" 2>&1
}

# One line a target; what went wrong, if something did.
report() {
  local target=$1 passed=$2 log=$out/log/$1 count coverage
  count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log" |
    tail -n 1)
  printf 'fuzz: %-12s %10s executions, %s%s\n' "$target" "${count:-?}" "${coverage:-no coverage}" \
    "$([ "$passed" = 0 ] || echo ': FAILED')"
  if [ "$passed" != 0 ]; then
    grep -A 5 panicked "$log" || true
    tail -n 40 "$log"
    echo "fuzz: again: $out/bin/$target <the file above>"
  fi >&2
}

failed=0
wait_for_one() {
  local target=${running[0]} passed=0
  wait "${pids[0]}" || passed=$?
  report "$target" "$passed"
  [ "$passed" = 0 ] || failed=1
  running=("${running[@]:1}")
  pids=("${pids[@]:1}")
}

running=()
pids=()
for target in "${targets[@]}"; do
  [ ${#pids[@]} -lt "$(nproc)" ] || wait_for_one
  run "$target" &
  running+=("$target")
  pids+=($!)
done
while [ ${#pids[@]} -gt 0 ]; do wait_for_one; done
exit $failed
