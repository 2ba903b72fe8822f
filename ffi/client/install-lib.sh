#!/bin/sh
# Installs headers, libraries, the pkg-config file and the CMake package:
#
#     ffi/client/install-lib.sh BUILT PREFIX LIBDIR
#
# BUILT is what build-lib.sh was given; PREFIX and LIBDIR are where programs will find them, such as
# /usr and /usr/lib/x86_64-linux-gnu. DESTDIR, if set, goes before both.
set -eu

[ $# -eq 3 ] || { echo "usage: $0 BUILT PREFIX LIBDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
include=$here/../../include
built=$1 prefix=$2 libdir=$3 dest=${DESTDIR:-}
for folder in "$prefix" "$libdir"; do
  case $folder in /*) ;; *) echo "$0: $folder: not an absolute path" >&2; exit 2 ;; esac
done

version=$(sed -n 's/^#define GPULET_VERSION "\(.*\)"$/\1/p' "$include/gpulet.h")
major=${version%%.*} rest=${version#*.}
put() {
  sed -e "s|@PREFIX@|$prefix|g" -e "s|@LIBDIR@|$libdir|g" -e "s|@VERSION@|$version|g" \
    -e "s|@VERSION_MAJOR@|$major|g" -e "s|@VERSION_MINOR@|${rest%%.*}|g" \
    "$here/package/$1.in" >"$2/$1"
  chmod 644 "$2/$1"
}

install -d "$dest$prefix/include/gpulet" "$dest$libdir/pkgconfig" "$dest$libdir/cmake/gpulet"
install -m 644 "$include/gpulet.h" "$include/gpulet.hpp" "$dest$prefix/include"
install -m 644 "$include"/gpulet/*.h "$dest$prefix/include/gpulet"
install -m 644 "$built/libgpulet.so.0" "$built/libgpulet.a" "$dest$libdir"
ln -sf libgpulet.so.0 "$dest$libdir/libgpulet.so"
put gpulet.pc "$dest$libdir/pkgconfig"
put gpuletConfig.cmake "$dest$libdir/cmake/gpulet"
put gpuletConfigVersion.cmake "$dest$libdir/cmake/gpulet"
