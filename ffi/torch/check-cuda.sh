#!/bin/sh
# Compiles the CUDA half where there is no GPU: against the headers that fetch-libtorch.sh put into
# DIR. It is linked where libtorch_cuda is (build.rs, or build-shims.sh without Cargo).
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
include=$1/torch/include
exec "${CXX:-g++}" -std=c++20 -fsyntax-only -Wall -Wextra -Werror -DAT_PER_OPERATOR_HEADERS \
    '-DGTORCH_LIBTORCH="/"' -isystem "$include" -isystem "$include/torch/csrc/api/include" \
    -isystem "$1/nvidia/cu13/include" "$(dirname "$0")/shim_cuda.cc"
