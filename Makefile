VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The newest supported Python on PATH, unless one is named: make test PYTHON=python3.12
PYTHON ?=

.PHONY: demo test test-browser test-slow test-processors test-versions fuzz check bench docs site clean

demo: $(READY)
	$(BIN)/neuroscope demo --output-dir demo

# One process a core, each with one thread; a file's tests share its pipelines, so they stay together.
TEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test: check
	$(TEST)

# The report and the site in a real browser. A Chromium must be on PATH, such as Debian's package chromium; playwright's own is not used.
test-browser: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser,docs]'
	$(BIN)/python -m pytest -m browser

test-slow: $(READY)
	$(TEST) -m slow

# The fast tests with the instructions of other processors, with one thread and two; hours on two cores.
test-processors: $(READY)
	$(BIN)/python -m tests.processors

# The fast tests with the lowest and the newest versions that pyproject.toml allows, each in an environment of its own.
test-versions: $(READY)
	$(BIN)/python -m tests.versions

# Random cases; the seed comes from the clock, is printed, and can be given as SEED=....
fuzz: $(READY)
	FUZZ_SEED=$(SEED) $(TEST) -m fuzz tests/fuzz

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.ranking
	$(BIN)/python -m benchmarks.masking
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.layers
	$(BIN)/python -m benchmarks.planted

docs: $(READY)
	$(BIN)/python docs/pictures.py
	$(BIN)/python docs/models.py
	$(BIN)/python -m docs.pipelines
	$(BIN)/python -m docs.imports

# The pages and the docstrings as a site in site/; any warning is an error.
site: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-versions demo runs site

# Exact versions come from constraints.txt; torch goes first so that the CPU build satisfies everything after it.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { python=$$(PYTHON='$(PYTHON)' .ci/python.sh) && $$python -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
