# SPDX-License-Identifier: Apache-2.0
# The index of everything runnable. The work is in scripts and in Cargo; nothing is decided here.
#
#   make demo      set up, build, start gpuletd, and let a C client ask real models real questions
#   make test      set up, and run everything that proves this tree right (no GPU needed)
#   make bench     the raw-latency benches; figures and how they were taken: bench/RESULTS.md
#   make models    export the evaluation's models to target/models (1.4 GB)
#   make install   [DESTDIR=] [PREFIX=/usr/local]; `make build` first
#   make hostile   an hour of a hostile client beside honest ones

BUILD := target/release
CLIENT_LIB := target/client-lib
CARGO ?= cargo

.PHONY: build demo test bench models hostile clean

build:
	$(CARGO) build --release --locked -p gpulet-daemon -p gpulet-bench
	ffi/client/build-lib.sh $(CLIENT_LIB)

demo:
	.ci/setup.sh demo
	$(MAKE) build
	bench/demo/run.sh

test:
	.ci/setup.sh test
	.ci/test.sh

bench: build
	$(BUILD)/gpulet-bench ring
	$(BUILD)/gpulet-bench e2e --model resource/models/digits

models:
	.ci/setup.sh models
	/usr/bin/python3 resource/models/export.py target/models
	/usr/bin/python3 resource/models/check.py resource/models target/models

hostile:
	$(CARGO) build --release --locked -p gpulet-daemon
	HOSTILE_SECONDS=3600 $(CARGO) test --release --locked -p gpulet-daemon --test hostile

clean:
	$(CARGO) clean

include systemd/install.mk
