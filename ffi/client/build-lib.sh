#!/bin/sh
# Builds the C library into OUTDIR:
#
#     ffi/client/build-lib.sh OUTDIR
#
# libgpulet.so.0   shared, SONAME libgpulet.so.0, exports client.map's symbols and nothing else
# libgpulet.so     link to it, for the linker
# libgpulet.a      static, one object, whose only global definitions are those symbols too
#
# rustc hands the linker a version script of its own for a cdylib, and GNU ld takes only one. So
# rustc builds a static library, and the linker that every C compiler comes with does the rest.
# Needs cargo, cc and binutils; heeds CARGO, CC, LD, OBJCOPY, AR and CARGO_TARGET_DIR.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$(pwd)/$target ;; esac

(cd "$root" && CARGO_TARGET_DIR=$target "${CARGO:-cargo}" rustc --quiet \
  --package gpulet-client --lib --profile client --crate-type staticlib)
built=$target/client/libgpulet_client.a

work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The names of the map: the roots of what is kept, and all that stays visible.
sed -n 's/^ *\(gpulet_[a-z0-9_]*\);$/\1/p' "$here/client.map" >"$work/symbols"
roots=$(sed 's/^/--undefined=/' "$work/symbols")

# One relocatable object of only what the roots reach. $roots is many words on purpose.
# shellcheck disable=SC2086
"${LD:-ld}" -r --gc-sections $roots --whole-archive "$built" -o "$work/all.o"
# Bitcode that Rust's own objects carry is of no use here, and older LLVM plugins choke on it.
"${OBJCOPY:-objcopy}" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd \
  --keep-global-symbols="$work/symbols" "$work/all.o" "$work/gpulet.o"

"${CC:-cc}" -shared -o "$work/libgpulet.so.0" "$work/gpulet.o" \
  -Wl,-soname,libgpulet.so.0 -Wl,--version-script="$here/client.map" \
  -Wl,--gc-sections -Wl,-z,relro -Wl,-z,now -Wl,-z,defs -Wl,--as-needed -Wl,--strip-all \
  -lpthread -ldl -lm
"${AR:-ar}" rcsD "$work/libgpulet.a" "$work/gpulet.o"
ln -s libgpulet.so.0 "$work/libgpulet.so"

for file in libgpulet.so.0 libgpulet.a libgpulet.so; do
  # Whole and at once: a program that runs keeps the file it opened.
  mv -f "$work/$file" "$out/$file"
done
