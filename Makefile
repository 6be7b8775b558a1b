# `make demo` and `make test` need nothing but Python >= 3.11 with its venv module, git and make.
PYTHON ?= python3
BIN := .venv/bin
# A file of exact versions to install, such as constraints.txt, which .ci/run gives; without it the newest that there are.
CONSTRAINTS ?=
# K/N runs only the K-th of N parts of the slow tests.
SHARE ?=
PIP_INSTALL := pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST := python -m pytest -n auto --dist worksteal -rs
# The newest Python of this machine, and the tests of what stands on JAX's internals and of the code that the README and the pages show.
NEWEST ?= $(firstword $(foreach v,3.13 3.12,$(wildcard $(HOME)/.pyenv/versions/$(v)*/bin/python) $(shell command -v python$(v))))
TESTS ?= tests/test_jaxpr.py tests/test_convolution.py tests/curvature/test_capture.py tests/test_cohort.py \
	tests/test_stream.py tests/test_rounds.py tests/test_local.py tests/test_readme.py

.PHONY: demo test test-slow docs newest test-newest test-flower test-torch check format dist try-dist lock
demo: .venv/installed
	$(BIN)/fedfisher run --out runs/demo --overwrite

test: .venv/installed-tests
	$(BIN)/$(PYTEST) --quick

# Real processes, the authors' arrays, experiments at a size of seconds: what `make test` skips; SHARE=0/4 is a quarter.
test-slow: .venv/installed-tests
	$(BIN)/$(PYTEST) -m slow $(if $(SHARE),--share $(SHARE))

# The site, into site/; warnings (broken links, names that are not there) are errors.
docs: .venv/installed-docs
	JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

newest:
	@echo $(NEWEST)

# With XLA's optimisations, which tests/conftest.py turns off to compile faster.
test-newest: .venv/newest/installed
	XLA_FLAGS= .venv/newest/bin/$(PYTEST) $(TESTS) $(if $(SHARE),--share $(SHARE))

test-flower: .venv/flower/installed
	.venv/flower/bin/python -m pytest tests/test_flower*.py

test-torch: .venv/torch/installed
	.venv/torch/bin/python -m pytest tests/checkpoints tests/test_house.py "tests/test_readme.py::test_the_code_of_a_page_runs[checkpoints.md]"

check: .venv/installed-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/installed-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: .venv/installed-tests
	rm -rf dist
	$(BIN)/python -m build --outdir dist

# What a user of the release gets: the wheel in an empty environment, run in an empty folder.
try-dist: dist
	.ci/try-wheel $(PYTHON) dist/*.whl $(CONSTRAINTS)

# The exact versions of the tests' environment.
lock: .venv/installed-tests
	$(BIN)/python -c 'import platform, jax; print(f"# Python {platform.python_version()}, jax {jax.__version__}")' > constraints.txt
	$(BIN)/pip freeze --exclude-editable >> constraints.txt

# $(call environment,PYTHON,FOLDER): Debian ships venv apart, and says so only when it has made half an environment.
define environment
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON=$(1): expected Python 3.11 or newer"; exit 1; }
	@$(1) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "PYTHON=$(1): has no venv; install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(1) -m venv $(2)
endef

.venv/pyvenv.cfg:
	$(call environment,$(PYTHON),.venv)

.venv/installed: pyproject.toml .venv/pyvenv.cfg
	$(BIN)/$(PIP_INSTALL) -e .
	touch $@

.venv/installed-tests: pyproject.toml .venv/pyvenv.cfg
	$(BIN)/$(PIP_INSTALL) -e ".[tests,dev]"
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml .venv/pyvenv.cfg
	$(BIN)/$(PIP_INSTALL) -e ".[docs]"
	touch $@ .venv/installed

.venv/newest/installed: pyproject.toml
	@test -n "$(NEWEST)" || { echo "NEWEST: no python3.13 or python3.12 found; say NEWEST=path/to/python"; exit 1; }
	$(call environment,$(NEWEST),.venv/newest)
	.venv/newest/bin/pip install --quiet --upgrade -e ".[tests]"
	touch $@

.venv/flower/installed: pyproject.toml
	$(call environment,$(PYTHON),.venv/flower)
	.venv/flower/bin/pip install --quiet -e ".[tests,flower]" "flwr[simulation]"
	touch $@

# Of PyTorch 2.13.0 the package index may have a build for the CPU alone, 2.13.0+cpu, which pip then prefers; else say
# where one is: PIP_EXTRA_INDEX_URL=...
.venv/torch/installed: pyproject.toml
	$(call environment,$(PYTHON),.venv/torch)
	.venv/torch/bin/pip install --quiet "torch==2.13.0" -e ".[tests,torch,parquet]"
	touch $@
