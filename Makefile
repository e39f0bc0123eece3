# make demo: from a fresh clone to a result. make test: everything that must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamp files: a second run installs nothing unless these two inputs changed.
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

.PHONY: venv demo test lint bench clean

venv: $(RUNTIME)

$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("expected Python 3.11 or newer, found " + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11")'
	@echo "Installing cryo-forum into $(VENV); the first time takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(RUNTIME)
	$(BIN)/cryoforum demo --out demo --overwrite

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(RUNTIME)
	$(BIN)/python benchmarks/timings.py

clean:
	rm -rf $(VENV) build dist demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -exec rm -rf {} +
