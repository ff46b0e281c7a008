PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check bench docs clean

demo: $(READY)
	$(BIN)/neuroscope demo --output-dir demo

test: check
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.ranking
	$(BIN)/python -m benchmarks.masking
	$(BIN)/python -m benchmarks.layers

docs: $(READY)
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) demo runs

# Exact versions come from constraints.txt; torch goes first so that the CPU build satisfies everything after it.
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
