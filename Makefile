# make run    install, then forty trials and their report
# make test   install, then all tests
# make check  format, lint, types, import contract, tests: what CI runs
# make chaos  the long chaos campaigns: ten minutes of kills, stops and restarts on both databases
# make bench  the benchmarks of the CPU; results go to benchmarks/results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRIALS ?= 40
# quick tests side by side; those that start processes or train for long one after another
PYTEST = $(BIN)/pytest -m "not slow" -n 2 --dist loadfile && $(BIN)/pytest -m slow --durations=25

.PHONY: run test check chaos bench format install install-test

run: install
	$(BIN)/hpo run --study lambda_phi --trials $(TRIALS)
	$(BIN)/hpo report --format markdown

test: install-test
	$(PYTEST)

check: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

chaos: install-test
	$(BIN)/python -m tests.nightly.chaos --storage sqlite --outages 12
	$(BIN)/python -m tests.nightly.chaos --storage postgresql --outages 12
	$(BIN)/python -m tests.nightly.chaos --storage sqlite --trials 24 --kills 30 --outages 2 --real
	$(BIN)/python -m tests.nightly.chaos --storage postgresql --trials 24 --kills 30 --outages 2 --real

bench: install-test
	for each in storage workers recovery training trial_start generation; do $(BIN)/python benchmarks/$$each.py || exit 1; done

format: install-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed
