#!/bin/sh
# C and C++ clients against the real daemon: compiled by gcc and clang, and run plainly, under
# sanitizers and under valgrind.
#
#     BUILD=target/debug ffi/client/tests/run.sh
#
# BUILD holds gpuletd and gpulet-executor. Needs gcc, g++, clang, clang++ and valgrind.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$(cd "${BUILD:-$root/target/debug}" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/gpulet-client.XXXXXX")
daemon=
stop() {
  if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" || true; fi
  rm -rf "$work"
}
trap stop EXIT

"$root/ffi/client/build-lib.sh" "$work/lib"
"$root/ffi/client/install-lib.sh" "$work/lib" "$work/prefix" "$work/prefix/lib"

mkdir "$work/models"
ln -s "$root/resource/models/echo" "$root/resource/models/null" "$work/models/"
cat >"$work/gpuletd.toml" <<TOML
socket = "gpuletd.sock"
models = ["models"]
TOML
"$build/gpuletd" --config "$work/gpuletd.toml" >"$work/log" 2>&1 &
daemon=$!
socket=$work/gpuletd.sock
tries=0
while [ ! -S "$socket" ]; do
  kill -0 "$daemon" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  tries=$((tries + 1))
  [ $tries -le 600 ] || { echo "$0: gpuletd does not listen" >&2; cat "$work/log" >&2; exit 1; }
  sleep 0.05
done

# compile COMPILER STANDARD SOURCE FLAGS...: into $work/program
compile() {
  compiler=$1 standard=$2 source=$3
  shift 3
  "$compiler" "-std=$standard" -g -O1 -Wall -Wextra -Werror -pedantic "$@" \
    -I"$work/prefix/include" "$root/ffi/client/$source" -o "$work/program" \
    -L"$work/lib" -lgpulet -lpthread "-Wl,-rpath,$work/lib"
}
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all"

for pair in gcc:c11:c clang:c11:c g++:c++17:cpp g++:c++20:cpp clang++:c++17:cpp clang++:c++20:cpp; do
  compiler=${pair%%:*} rest=${pair#*:}
  standard=${rest%%:*} suffix=${rest#*:}
  source=tests/c/exercise.$suffix
  echo "$source: $compiler -std=$standard"
  compile "$compiler" "$standard" "$source"
  "$work/program" "$socket"
  case $standard in c11 | c++17) ;; *) continue ;; esac
  # shellcheck disable=SC2086
  compile "$compiler" "$standard" "$source" $sanitize
  "$work/program" "$socket"
done

for pair in gcc:c11:c g++:c++17:cpp; do
  compiler=${pair%%:*} rest=${pair#*:}
  echo "tests/c/exercise.${rest#*:}: valgrind"
  compile "$compiler" "${rest%%:*}" "tests/c/exercise.${rest#*:}"
  valgrind --quiet --error-exitcode=9 --leak-check=full --fair-sched=yes \
    --show-leak-kinds=definite,indirect "$work/program" "$socket"
done

export GPULET_SOCKET="$socket"
compile gcc c11 examples/first.c && "$work/program" echo
compile gcc c11 examples/pipeline.c && "$work/program" echo
compile g++ c++17 examples/first.cpp && "$work/program" echo

# The daemon saw nothing but good clients, and leaves in order.
kill "$daemon"
status=0
wait "$daemon" || status=$?
daemon=
if [ $status -ne 0 ] || grep -qE ' (WARN|ERROR) ' "$work/log"; then
  cat "$work/log" >&2
  echo "$0: gpuletd left with status $status, or had something to complain about" >&2
  exit 1
fi
echo "clients: ok"
