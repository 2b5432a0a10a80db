# Works on a machine that has only Python 3.11+, git and make. `make` alone lists the targets.

PYTHON  ?= python3
# Where torch comes from. The default is the small CPU build. An empty value takes what the package index gives, which on
# Linux is the CUDA build (some gigabytes): make distclean setup TORCH_INDEX=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Test processes. Each may hold the embedded team (about 1 GB).
WORKERS ?= 2
# Extra arguments, e.g. make test PYTEST="-k kl", make demo DEMO="--items 50",
# make study STUDY="--full --device cuda"
PYTEST  ?=
DEMO    ?=
STUDY   ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
PIP   := $(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help setup demo study test binder-test lint format lab bench hooks chromium constraints clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install everything that demo, test and lab need

# The stamp is written last, so an interrupted set-up is taken up again by the next make.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fusionlab needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one, e.g.: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu it is a package of its own: apt-get install python3-venv"; \
	  rm -rf $(VENV); exit 1; }
	@if [ -z "$(TORCH_INDEX)" ] || $(BIN)/python -c 'import torch' 2>/dev/null; then :; \
	elif $(BIN)/python -c 'import urllib.request as web; web.urlopen("$(TORCH_INDEX)/torch/", timeout=5)' 2>/dev/null; then \
	  $(PIP) install --quiet --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch; \
	elif [ "$(origin TORCH_INDEX)" != file ]; then \
	  echo "Cannot reach TORCH_INDEX=$(TORCH_INDEX)"; exit 1; \
	else \
	  echo "Cannot reach $(TORCH_INDEX): torch comes from pip's own index."; \
	fi
	$(PIP) install --quiet -c constraints.txt -e ".[lab,mlflow,dev]"
	@$(MAKE) --no-print-directory chromium
	$(BIN)/fusionlab fetch
	@touch $(READY)

chromium: ## look for Chromium (browser tests); as root on Debian, install it
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; then :; \
	else \
	  echo "No Chromium: the browser tests will be skipped. Install it with your package manager,"; \
	  echo "or without root by: $(BIN)/playwright install chromium"; \
	fi

demo: $(READY) ## the main job: fuse on real items, write figures and tables to runs/demo
	$(BIN)/python -m fusionlab.experiments.demo --out runs/demo $(DEMO)

study: $(READY) ## the paper's tables from a few items; STUDY=--shipped: from the full study's answers, STUDY=--full: all
	$(BIN)/python -m fusionlab.experiments.study --out runs/study $(STUDY)

test: $(READY) ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

binder-test: $(READY) ## what Binder would build and run, without a container engine: minutes, and 2 GB of disk
	$(BIN)/python -m pytest tests/binder_session.py -s

lint: $(READY) ## ruff and mypy, as the hooks and CI run them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: $(READY) ## open JupyterLab on notebooks/
	$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(READY) ## time large alone, proxy tuning and dynamic fusion on this CPU
	mkdir -p runs
	$(BIN)/fusionlab bench --device cpu --output runs/bench.parquet

hooks: $(READY) ## run ruff, mypy and the notebook stripper before each commit
	$(BIN)/pre-commit install

constraints: ## resolve anew and rewrite constraints.txt (then run make setup test)
	rm -rf $(VENV)-fresh
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install --quiet "torch==2.13.0" -e ".[lab,mlflow,dev]"
	{ sed '/^#/!d' constraints.txt; \
	  $(VENV)-fresh/bin/python -m pip freeze --all --exclude-editable --exclude pip \
	  | sed -E '/^(nvidia-|cuda-|triton)/d; s/\+[a-z0-9.]+$$//' | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-fresh

clean: ## remove what runs and builds left behind
	rm -rf runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV)
