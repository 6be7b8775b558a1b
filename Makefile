# `make demo` and `make test` need nothing but Python >= 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml .venv/pyvenv.cfg
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/installed-tests: pyproject.toml .venv/pyvenv.cfg
	$(BIN)/pip install --quiet -e ".[tests,dev]"
	touch $@ .venv/installed

.PHONY: demo test check format
demo: .venv/installed
	$(BIN)/fedfisher run --out runs/demo

test: .venv/installed-tests
	$(BIN)/python -m pytest -n auto

check: .venv/installed-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
