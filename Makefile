# Every target works on a fresh clone with Python 3.11 or newer, a Rust toolchain and a C compiler:
# it first brings .venv up to date (dependencies, and the extension in release mode).

PYTHON ?= python3
BIN    := .venv/bin
BUILT  := .venv/built.stamp
CARGO  := cargo
SEEDS  ?= 3000
FAULTS ?= 200
SEED   ?= 11
NATIVE := native/Cargo.toml $(wildcard native/Cargo.lock native/build.rs native/.cargo/config.toml) \
          $(shell find native/src -name '*.rs' 2>/dev/null)

# maturin sets this too: one build of PyO3 serves all targets, and the Rust tests, which call no
# Python, link without libpython.
export PYO3_BUILD_EXTENSION_MODULE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test soak soak-faults soak-simulation lint format bench docs wheel clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(BUILT) ## Run a complete demo: a Leader, a Helper, 1,000 clients and a collector
	$(BIN)/dapd demo

test: $(BUILT) ## Run cargo test, then pytest on all cores
	$(CARGO) test --manifest-path native/Cargo.toml --release --quiet
	$(BIN)/python -m pytest -n auto --dist worksteal

soak: soak-faults soak-simulation ## Run for longer what make test runs shortly: FAULTS=200, SEEDS=3000, SEED=11

soak-faults: $(BUILT)
	LONG=1 FAULTS=$(FAULTS) SEED=$(SEED) $(BIN)/python -m pytest -x -s -o faulthandler_timeout=0 tests/faults

soak-simulation: $(BUILT)
	SEEDS=$(SEEDS) SEED=$(SEED) $(BIN)/python -m pytest -n auto --dist worksteal -o faulthandler_timeout=0 tests/simulation

lint: $(BUILT) ## Run ruff, mypy, the import contracts, rustfmt and clippy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(CARGO) fmt --manifest-path native/Cargo.toml --check
	$(CARGO) clippy --manifest-path native/Cargo.toml --release --all-targets --quiet -- -D warnings

format: $(BUILT) ## Fix what lint complains about, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CARGO) fmt --manifest-path native/Cargo.toml

bench: $(BUILT) ## Measure throughput, garbage collection, scale, disk and memory
	$(BIN)/python bench/helper.py
	$(BIN)/python bench/upload.py
	$(BIN)/python bench/garbage.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/sizing.py

docs: $(BUILT) ## Build the documents as a site in site/; a dead link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

wheel: $(BUILT) ## Build a wheel in dist/, which installs without Rust
	$(BIN)/maturin build --release --locked --out dist

clean: ## Remove everything that was built, and .venv
	rm -rf .venv dist site dapd/_native*.so native/target .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Rebuilt only when the extension's sources or the dependencies have changed; Python sources are
# used in place.
$(BUILT): pyproject.toml $(NATIVE)
	@command -v $(CARGO) >/dev/null || { echo "no cargo: install a Rust toolchain from https://rustup.rs" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "maturin>=1.9,<2"
	PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/maturin develop --release --locked --extras test,dev,docs
	@touch $@
