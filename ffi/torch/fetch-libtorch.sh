#!/bin/sh
# Puts the CPU part of a pinned libtorch into DIR, from the wheels of the Python package index.
#
#   fetch-libtorch.sh DIR        then build and run with LIBTORCH_DIR=DIR/torch
#
# About 545 MB down; 505 MB stay. Does nothing where DIR is complete already. Needs python3 with pip
# (Debian: python3-pip) or with venv (python3-venv); nothing is installed outside DIR.
set -eu

# cudart and cupti are what libtorch_cpu links against, with or without a GPU.
torch=2.11.0
cudart=13.0.96
cupti=13.0.85
# Headers without which those of cudart do not compile: our CUDA half needs them.
crt=13.0.88
python=${PYTHON:-/usr/bin/python3}

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
dir=$1
stamp=$dir/complete-torch-$torch-cudart-$cudart-cupti-$cupti-crt-$crt
if [ -e "$stamp" ]; then
    echo "$dir/torch"
    exit 0
fi

if [ -n "$(ls -A "$dir" 2>/dev/null)" ] && ! ls "$dir"/complete-torch-* >/dev/null 2>&1; then
    echo "$0: $dir holds something else; name an empty or new folder" >&2
    exit 1
fi

mkdir -p "$(dirname "$dir")"
fresh=$(mktemp -d "$(dirname "$dir")/.libtorch-XXXXXX")
trap 'rm -rf "$fresh"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$fresh/venv"
    python=$fresh/venv/bin/python
fi
"$python" -m pip install --quiet --no-deps --no-compile --no-cache-dir --root-user-action=ignore \
    --target "$fresh/all" \
    "torch==$torch" "nvidia-cuda-runtime==$cudart" "nvidia-cuda-cupti==$cupti" \
    "nvidia-cuda-crt==$crt" >&2

# Keep what compiling and running on a CPU takes, where it lay: the libraries find each other by
# paths relative to themselves. Licences stay with the files.
(
    cd "$fresh/all"
    mkdir -p ../kept/torch/lib ../kept/nvidia/cu13/lib
    mv torch/include ../kept/torch/
    mv torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp*.so* ../kept/torch/lib/
    mv nvidia/cu13/include ../kept/nvidia/cu13/
    mv nvidia/cu13/lib/libcudart.so.* nvidia/cu13/lib/libcupti.so.* ../kept/nvidia/cu13/lib/
    mv ./*.dist-info ../kept/
)
touch "$fresh/kept/$(basename "$stamp")"
chmod 755 "$fresh/kept"
rm -rf "$dir"
mv "$fresh/kept" "$dir"
echo "$dir/torch"
