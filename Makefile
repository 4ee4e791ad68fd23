# Two commands matter: `make demo` and `make test`. Both make and reuse one environment, .venv.
# PYTHON picks the interpreter that .venv is made with:  make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Worker processes of pytest; each runs torch on one thread.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-sglang lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1	/' | expand -t 8

demo:  ## install what is missing, then answer four questions with the embedded checkpoint
	@$(PYTHON) tools/install.py --venv $(VENV)
	@$(BIN)/wellhead demo

test:  ## install what is missing, then ruff, mypy and pytest
	@$(PYTHON) tools/install.py --venv $(VENV) --extra dev --extra serve --extra bench
	-@$(BIN)/python tools/triton_versions.py
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-sglang:  ## our plugin against the newest SGLang, on the CPU, in its own environment
	@$(PYTHON) -m tools.test_sglang --venv .venv-sglang

lint:  ## ruff and mypy only
	@$(PYTHON) tools/install.py --venv $(VENV) --extra dev --extra serve --extra bench
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove .venv and the tools' caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
