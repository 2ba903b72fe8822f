#!/bin/sh
# rustc with coverage counters for what judges foreign bytes: our crates and the parsers under them.
# Everything else builds, and runs, faster without. Build scripts and macros (no --target) are left
# alone, as nobody links them with libFuzzer.
rustc=$1
shift
crate="" target="" last=""
for argument in "$@"; do
  case $last in --crate-name) crate=$argument ;; esac
  case $argument in --target | --target=*) target=yes ;; esac
  last=$argument
done
if [ "$target" ]; then
  case $crate in
    gpulet_* | serde | serde_core | serde_json | serde_path_to_error | serde_spanned | \
      toml | toml_* | winnow)
      set -- "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
      ;;
  esac
fi
exec "$rustc" "$@"
