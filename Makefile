# make run                      the four notebooks on the demo set, into runs/
# make run DATA=pairs.zip       the same on real pairs: an archive, a folder, or kaggle
# make run KNOBS="EPOCHS=4"     with knobs of the notebooks
# make test                     the tests, with the newest packages
# make test-colab, test-oldest  the tests, with Colab's present packages or the oldest that are supported
# make bench DATA=pairs.zip     speed against other ways, measured side by side; about 20 minutes on two cores
# make lint | format | badges | pictures | clean
PYTHON ?= python3
DATA ?= demo
KNOBS ?=
BENCH ?=
VENV ?= .venv
CONSTRAINTS ?=
BIN := $(VENV)/bin

.PHONY: run test test-colab test-oldest lint format badges bench pictures clean

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --editable ".[dev]"
	touch $@

run: $(VENV)/ready
	$(BIN)/python scripts/run_notebooks.py --data "$(DATA)" $(KNOBS)

test: $(VENV)/ready
	$(BIN)/python -m pytest

test-colab:
	$(MAKE) test VENV=.venv-colab CONSTRAINTS=tests/constraints/colab.txt PYTHON=$(or $(PYTHON_COLAB),python3.13)

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=tests/constraints/oldest.txt PYTHON=$(or $(PYTHON_OLDEST),python3.11)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb

# Writes the address of this repository (the git remote, or URL=...) into the badges and the setup cells.
badges: $(VENV)/ready
	$(BIN)/python scripts/sync_notebooks.py $(if $(URL),--url $(URL))

clean:
	rm -rf .venv .venv-colab .venv-oldest build *.egg-info

# The README's pictures, from the demo set.
pictures: run
	$(BIN)/python scripts/update_pictures.py

# Ratios measured side by side; the report goes to docs/. BENCH takes options, such as BENCH="--rows 1 5 --rounds 5".
$(VENV)/bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,bench]"
	touch $@

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks --data "$(DATA)" $(BENCH)
