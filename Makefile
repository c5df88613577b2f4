# Everything here works on a fresh clone with Python 3.11 or newer, a Rust toolchain and a C
# compiler: each target first brings .venv up to date (dependencies, extension in release mode).

PYTHON ?= python3
BIN    := .venv/bin
BUILT  := .venv/built.stamp
CARGO  := cargo
NATIVE := native/Cargo.toml $(wildcard native/Cargo.lock native/build.rs native/.cargo/config.toml) \
          $(shell find native/src -name '*.rs' 2>/dev/null)

# As maturin sets it: PyO3 is built once for all targets, and the Rust tests, which call no Python,
# need no libpython to link with.
export PYO3_BUILD_EXTENSION_MODULE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench docs wheel clean

help: ## Show these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(BUILT) ## Two daemons, a thousand clients, a collector, and the truth beside the result
	$(BIN)/dapd demo

test: $(BUILT) ## cargo test, then pytest
	$(CARGO) test --manifest-path native/Cargo.toml --release --quiet
	$(BIN)/python -m pytest

lint: $(BUILT) ## ruff, mypy, import contracts, rustfmt, clippy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(CARGO) fmt --manifest-path native/Cargo.toml --check
	$(CARGO) clippy --manifest-path native/Cargo.toml --release --all-targets --quiet -- -D warnings

format: $(BUILT) ## Rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CARGO) fmt --manifest-path native/Cargo.toml

bench: $(BUILT) ## Reports per second, beside the crypto floor; garbage collection; disk and memory
	$(BIN)/python bench/helper.py
	$(BIN)/python bench/upload.py
	$(BIN)/python bench/gc.py
	$(BIN)/python bench/sizing.py

docs: $(BUILT) ## The documents as a site in site/; fails where a link leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

wheel: $(BUILT) ## A wheel in dist/ that installs where there is no Rust
	$(BIN)/maturin build --release --locked --out dist

clean: ## Remove all that was built, and .venv
	rm -rf .venv dist site dapd/_native*.so native/target .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Built again only when the extension's sources or the dependencies changed; Python sources are
# used where they stand.
$(BUILT): pyproject.toml $(NATIVE)
	@command -v $(CARGO) >/dev/null || { echo "no cargo: install a Rust toolchain from https://rustup.rs" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "maturin>=1.9,<2"
	PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/maturin develop --release --locked --extras test,dev,docs
	@touch $@
