# make run                      the four notebooks on the demo set, into runs/
# make run DATA=pairs.zip       the same on real pairs: an archive, a folder, or kaggle
# make run KNOBS="EPOCHS=4"     with knobs of the notebooks
# make test | bench | lint | badges | clean
PYTHON ?= python3
DATA ?= demo
KNOBS ?=
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test lint format badges figures clean

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

run: $(VENV)/ready
	$(BIN)/python scripts/run_notebooks.py --data "$(DATA)" $(KNOBS)

test: $(VENV)/ready
	$(BIN)/python -m pytest

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
	rm -rf $(VENV) build *.egg-info
