#!/bin/sh
# Puts a pinned NVRTC into DIR, from a wheel of the Python package index: what compiling the kernels
# takes on a machine without CUDA, and no GPU.
#
#   fetch-nvrtc.sh DIR        then test with GPULET_NVRTC=DIR/lib
#
# About 90 MB down; 110 MB stay. Does nothing where DIR is complete already. Needs python3 with pip
# (Debian: python3-pip) or with venv (python3-venv); nothing is installed outside DIR.
set -eu

# The one that belongs to torch 2.11.
nvrtc=13.0.88
python=${PYTHON:-/usr/bin/python3}

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
dir=$1
stamp=$dir/complete-nvrtc-$nvrtc
if [ -e "$stamp" ]; then
    echo "$dir/lib"
    exit 0
fi

if [ -n "$(ls -A "$dir" 2>/dev/null)" ] && ! ls "$dir"/complete-nvrtc-* >/dev/null 2>&1; then
    echo "$0: $dir holds something else; name an empty or new folder" >&2
    exit 1
fi

mkdir -p "$(dirname "$dir")"
fresh=$(mktemp -d "$(dirname "$dir")/.nvrtc-XXXXXX")
trap 'rm -rf "$fresh"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$fresh/venv"
    python=$fresh/venv/bin/python
fi
"$python" -m pip install --quiet --no-deps --no-compile --no-cache-dir --root-user-action=ignore \
    --target "$fresh/all" "nvidia-cuda-nvrtc==$nvrtc" >&2

# The alternative builds beside them are not used. The licence stays with the files.
(
    cd "$fresh/all"
    mkdir -p ../kept/lib
    mv nvidia/cu13/lib/libnvrtc.so.13 nvidia/cu13/lib/libnvrtc-builtins.so.13.0 ../kept/lib/
    mv ./*.dist-info ../kept/
)
touch "$fresh/kept/$(basename "$stamp")"
chmod 755 "$fresh/kept"
rm -rf "$dir"
mv "$fresh/kept" "$dir"
echo "$dir/lib"
