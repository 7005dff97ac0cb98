# A fresh machine needs Python >= 3.10, make and pip; then `make demo` and `make test`.
PYTHON ?= python3
DEV := .venv
BARE := .venv-bare
# The oldest supported libraries have wheels for Python 3.10 to 3.12.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= $(shell for p in python3.10 python3.11 python3.12; do $$p -c '' 2>/dev/null && echo $$p && break; done)
# What is installed, with sub-packages of two levels and the report's template.
SOURCES := $(wildcard $(foreach folder,runtime train export,$(folder)/*.py $(folder)/*/*.py $(folder)/*/*/*.py $(folder)/*/*.jinja))
# setuptools copies everything that an older build left in build/lib into the next wheel.
CLEAR_BUILD := rm -rf build/lib build/bdist.*
# Two processes, each with one thread; a test file runs in one process, the longest files first: those of the export.
PYTEST := OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-runtime slow fuzz audit bench lint types pytest wheel models measure clean

# The development environment: training, export, tests.
$(DEV)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The runtime alone, as on a device: without PyTorch, and installed as users install it.
$(BARE)/installed: pyproject.toml $(SOURCES)
	$(PYTHON) -m venv $(BARE)
	$(CLEAR_BUILD)
	$(BARE)/bin/python -m pip install --quiet --force-reinstall --no-deps .
	$(BARE)/bin/python -m pip install --quiet '.[cpu]'
	touch $@

# The oldest versions that pyproject.toml allows, without PyTorch.
$(OLDEST)/installed: pyproject.toml $(SOURCES)
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(CLEAR_BUILD)
	$(OLDEST)/bin/python -m pip install --quiet 'numpy==1.26.0' 'onnxruntime==1.20.0' 'msgspec==0.19.0' 'click==8.1.0' 'pillow<=13.0.0'
	$(OLDEST)/bin/python -m pip install --quiet --force-reinstall --no-deps .
	touch $@

demo: $(DEV)/installed $(BARE)/installed
	@echo "== train on scikit-learn's digits (Pyro, PyTorch)"
	$(DEV)/bin/python -m train --dataset digits --epochs 200 --batch-size 64 --out demo/run --force
	@echo "== export and verify against Pyro"
	$(DEV)/bin/vae-export demo/run --format onnx --format torchscript --out demo/digits-mlp --force
	@echo "== run without PyTorch"
	! $(BARE)/bin/python -c 'import torch' 2>/dev/null
	$(BARE)/bin/vae-run verify demo/digits-mlp
	$(BARE)/bin/vae-run reconstruct demo/digits-mlp demo/digits-mlp/reference.npz --seed 0 --out demo/reconstructions.png
	$(BARE)/bin/vae-run generate demo/digits-mlp -n 64 --seed 0 --out demo/samples.png
	@echo "== look at demo/reconstructions.png and demo/samples.png"

test: lint types pytest

lint: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

# mypy finds packages by their folders: build/types shows it the installed names as links.
TYPES := build/types
types: $(DEV)/installed
	rm -rf $(TYPES) && mkdir -p $(TYPES)/edgevae
	ln -s $(CURDIR)/runtime/* $(CURDIR)/train $(CURDIR)/export $(TYPES)/edgevae/
	MYPYPATH=$(TYPES) $(DEV)/bin/mypy $(TYPES)/edgevae benchmarks examples tests

pytest: $(DEV)/installed $(BARE)/installed $(OLDEST)/installed
	EDGEVAE_BARE_PYTHON=$(CURDIR)/$(BARE)/bin/python EDGEVAE_OLDEST_PYTHON=$(CURDIR)/$(OLDEST)/bin/python $(PYTEST) -m 'not slow'

# The runtime without PyTorch, on Linux, macOS and Windows. Without make: the commands in CONTRIBUTING.md.
RUNTIME := .venv-runtime
RUNTIME_PYTHON := $(RUNTIME)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
test-runtime:
	$(PYTHON) -m venv $(RUNTIME)
	$(CLEAR_BUILD)
	$(RUNTIME_PYTHON) -m pip install --quiet '.[cpu]' pytest
	$(RUNTIME_PYTHON) -m pytest --noconftest tests/test_runtime_alone.py

# Tests that take minutes: all 48 combinations of the model space among them.
slow: $(DEV)/installed
	$(PYTEST) -m slow

# Random and damaged bytes for every reader of files from elsewhere, guided by coverage.
FUZZ_SECONDS ?= 20
fuzz: $(DEV)/installed
	$(DEV)/bin/python -m pip install --quiet --editable '.[fuzz]'
	for target in arrays bundle graph images manifest noise reference; do \
		$(DEV)/bin/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) --seed 1 || exit 1; done

# Known vulnerabilities of the installed packages; needs the network.
audit: $(DEV)/installed
	$(DEV)/bin/python -m pip install --quiet pip-audit
	$(DEV)/bin/pip-audit --strict --skip-editable

# Speed beside other ways to run the same model; half an hour on two cores.
bench: $(DEV)/installed $(BARE)/installed
	$(DEV)/bin/python -m pip install --quiet --editable '.[bench]'
	$(DEV)/bin/python -W ignore -m benchmarks.inference --json docs/inference.json --chart docs/inference.svg
	$(DEV)/bin/python -m benchmarks.start --python $(BARE)/bin/python --chart docs/start.svg
	$(DEV)/bin/python -m benchmarks.training

# What a release uploads: dist/edgevae-VERSION-py3-none-any.whl.
wheel:
	$(CLEAR_BUILD) dist
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

# The bundles in models/, trained and exported again; hours on two cores. `make models BUNDLES=mnist-mlp` makes one. A stopped
# training goes on. EDGEVAE_DATA names a folder with mnist/ and fashion-mnist/; what it lacks is downloaded.
BUNDLES := digits-mlp fashion-normal mnist-conditional mnist-conv mnist-hierarchical mnist-mixture mnist-mlp
RECIPE_digits-mlp := --dataset digits --epochs 200 --batch-size 64
RECIPE_fashion-normal := --dataset fashion-mnist --likelihood normal --hidden-dim 200 --epochs 60
RECIPE_mnist-conditional := --dataset mnist --conditional
RECIPE_mnist-conv := --dataset mnist --architecture conv --hidden-dim 128 --epochs 60
RECIPE_mnist-hierarchical := --dataset mnist --latent hierarchical --z-dims 32,16
RECIPE_mnist-mixture := --dataset mnist --latent mixture
RECIPE_mnist-mlp := --dataset mnist
FORMATS_digits-mlp := --format onnx --format torchscript
data_of = $(if $(EDGEVAE_DATA),$(addprefix --data-dir ,$(wildcard $(EDGEVAE_DATA)/$(word 2,$(RECIPE_$1)))))
models: $(BUNDLES:%=model-%)
model-%: $(DEV)/installed
	$(DEV)/bin/python -m train $(RECIPE_$*) $(call data_of,$*) --no-report --out build/models/$* --resume
	$(DEV)/bin/vae-export build/models/$* $(FORMATS_$*) --license Apache-2.0 --out models/$* --force

# Files, lines, and tests that use private names.
measure: $(DEV)/installed
	$(DEV)/bin/python -m tests.measure

clean:
	rm -rf $(DEV) $(BARE) $(OLDEST) $(RUNTIME) demo build dist *.egg-info
