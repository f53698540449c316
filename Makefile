# make demo   samples from the shipped digits model         make test   the tests
# make lint   ruff and mypy                                 make test-all   with full-width networks
# make tour   the commands of docs/tour.md: trains, measures, samples and compares, half an hour on two cores
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo tour test test-all lint format install clean

demo: $(VENV)/.installed
	$(BIN)/python main.py --config=configs/digits.py --mode=sample

tour: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/tour.sh

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
