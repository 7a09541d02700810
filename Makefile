PYTHON ?= python3
DATA ?= demo
KNOBS ?=
BENCH ?=
VENV ?= .venv
CONSTRAINTS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test quick test-colab test-oldest lint format badges release pictures site bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: DATA=demo|kaggle|FILE.zip|FOLDER, KNOBS="EPOCHS=4 ...", BENCH="--rows 1 5", PYTHON=python3.12'

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --editable ".[dev]"
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(INSTALL) --editable ".[dev,bench]"
	touch $@

run: $(VENV)/ready  ## run the five notebooks on DATA (default: the demo set), into runs/
	$(BIN)/python scripts/run_notebooks.py --data "$(DATA)" $(KNOBS)

test: $(VENV)/ready  ## run the tests with the newest packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

quick: $(VENV)/ready  ## run the tests that take no time, between two edits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "not slow"

test-colab:  ## run the tests with the packages of Colab
	$(MAKE) test VENV=.venv-colab CONSTRAINTS=tests/constraints/colab.txt PYTHON=$(or $(PYTHON_COLAB),python3.13)

test-oldest:  ## run the tests with the oldest supported packages
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=tests/constraints/oldest.txt PYTHON=$(or $(PYTHON_OLDEST),python3.11)

lint: $(VENV)/ready  ## check style, types, and that notebooks hold no output
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb
	$(BIN)/mypy

format: $(VENV)/ready  ## format the code and strip the notebooks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb

badges: $(VENV)/ready  ## write the address of this repository (git remote, or URL=...) into badges and setup cells
	$(BIN)/python scripts/sync_notebooks.py $(if $(URL),--url $(URL))

release: $(VENV)/ready  ## write the tag of this version into notebooks and README, and check that it is ready
	$(BIN)/python scripts/sync_notebooks.py --release $(if $(URL),--url $(URL))
	$(BIN)/python scripts/release.py

pictures: run  ## update the pictures of README and notebooks from a run on the demo set
	$(BIN)/python scripts/update_pictures.py

site: $(VENV)/ready  ## build the website in build/site (EXECUTED=runs/notebooks: of notebooks that are executed already)
	$(BIN)/python scripts/build_site.py $(if $(EXECUTED),--executed "$(EXECUTED)")

bench: $(VENV)/bench  ## measure speed beside other ways (with DATA, 20 minutes on two cores), into docs/
	$(BIN)/python -m benchmarks --data "$(DATA)" $(BENCH)

clean:  ## remove environments and build files
	rm -rf .venv .venv-colab .venv-oldest build *.egg-info .mypy_cache .ruff_cache .pytest_cache
