#!/bin/sh
# Compiles both halves of the shim without Cargo, for the libtorch of the machine they will run on.
#
#   build-shims.sh TORCH OUT      TORCH: a torch folder with include/ and lib/; OUT: where they go
#
# A torch that is installed for Python: python3 -c 'import torch; print(torch.__path__[0])'. The CUDA
# half is built where libtorch_cuda.so is; its headers are looked for in $CUDA_HOME, beside torch
# and in /usr/local/cuda.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 TORCH OUT" >&2
    exit 2
fi
torch=$(readlink -f "$1")
mkdir -p "$2"
out=$(readlink -f "$2")
cd "$(dirname "$0")"

compile() { # SOURCE LIBRARY NAME FLAG...
    source=$1 library=$2 name=$3
    shift 3
    # Under another name first: a running program may have the old one mapped.
    "${CXX:-g++}" -std=c++20 -O2 -fPIC -shared -fvisibility=hidden -DAT_PER_OPERATOR_HEADERS \
        "-DGTORCH_LIBTORCH=\"$library\"" \
        -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
        "$source" -o "$out/.$name" "-Wl,-soname,$name" -Wl,-z,defs "$library" "$@"
    mv "$out/.$name" "$out/$name"
    echo "$out/$name"
}

lib=$torch/lib
compile shim.cc "$lib/libtorch_cpu.so" libgpulet_torch.so "$lib/libc10.so"
[ -e "$lib/libtorch_cuda.so" ] || exit 0
for home in ${CUDA_HOME:-} "$torch/../nvidia/cu13" /usr/local/cuda; do
    if [ -e "$home/include/crt/host_defines.h" ]; then
        include=$home/include
        break
    fi
done
if [ -z "${include:-}" ]; then
    echo "$0: no CUDA headers: set CUDA_HOME to a folder with include/" >&2
    exit 1
fi
for cudart in "$torch/../nvidia/cu13/lib/libcudart.so.13" "$include/../lib64/libcudart.so.13"; do
    [ -e "$cudart" ] && break
done
compile shim_cuda.cc "$lib/libtorch_cuda.so" libgpulet_torch_cuda.so -isystem "$include" \
    "$lib/libc10_cuda.so" "$lib/libtorch_cpu.so" "$lib/libc10.so" "$cudart"
