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

.PHONY: demo test test-flower check format
demo: .venv/installed
	$(BIN)/fedfisher run --out runs/demo

test: .venv/installed-tests
	$(BIN)/python -m pytest -n auto

test-flower: .venv/flower/installed
	.venv/flower/bin/python -m pytest tests/test_flower.py

.venv/flower/installed: pyproject.toml
	$(PYTHON) -m venv .venv/flower
	.venv/flower/bin/pip install --quiet -e ".[tests,flower]" "flwr[simulation]"
	touch $@

check: .venv/installed-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
