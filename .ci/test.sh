#!/usr/bin/env bash
# Everything that proves this tree right, without a GPU. Needs .ci/setup.sh test.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TERM_COLOR=never RUST_BACKTRACE=1
# A tool that is missing fails its test instead of skipping it: .ci/setup.sh installed them all.
export GPULET_REQUIRE_TORCH=1 GPULET_TEST_TOOLS=all GPULET_BOOT_REQUIRED=1
third_party=${GPULET_THIRD_PARTY:-target/third-party}
started=$SECONDS

step() {
  printf '\n== %s (%d s so far)\n' "$1" $((SECONDS - started))
}

step "formatting"
cargo fmt --all -- --check

step "lints"
cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

step "NVRTC, for the kernels of GPUs"
GPULET_NVRTC=$(realpath "$(kernels/fetch-nvrtc.sh "$third_party/nvrtc-13.0")")
export GPULET_NVRTC GPULET_REQUIRE_NVRTC=1

step "the workspace, on Debian's libtorch"
cargo build --locked --workspace --all-targets --quiet
cargo test --locked --workspace

step "bounds and searches against a solver"
cargo test --locked --quiet -p gpulet-plan --features solver --test solver

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

step "rings and sleep/wake under every interleaving"
RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 CARGO_TARGET_DIR=target/loom \
  cargo test --locked --release --quiet -p gpulet-abi --test loom

step "libtorch 2.11"
ffi/torch/fetch-libtorch.sh "$third_party/torch-2.11"
LIBTORCH_DIR="$PWD/$third_party/torch-2.11/torch" CARGO_TARGET_DIR=target/torch-2.11 \
  cargo test --locked --quiet -p gpulet-torch

step "the CUDA half against its headers"
ffi/torch/check-cuda.sh "$third_party/torch-2.11"

step "models in the repository"
/usr/bin/python3 resource/models/check.py resource/models

step "C and C++ clients, under sanitizers and valgrind"
BUILD=target/debug ffi/client/tests/run.sh

step "fuzzing, five seconds a target"
ffi/fuzz/run.sh 5

step "a real systemd"
systemd/tests/boot.sh

printf '\nall passed in %d s\n' $((SECONDS - started))
