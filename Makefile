# make run      install, then forty trials and their report
# make test     install, then the tests that a person waits for: unit, contract, integration, acceptance
# make check    format, lint, types, import contract, tests: what CI runs
# make nightly  the tests that take too long for that: chaos, compilers, benchmarks, public curves, all combinations
# make chaos    the long chaos campaigns: ten minutes of kills, stops and restarts on both databases
# make bench    the benchmarks of the CPU; results go to benchmarks/results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRIALS ?= 40

.PHONY: run test check nightly chaos bench format install install-test

run: install
	$(BIN)/hpo run --study lambda_phi --trials $(TRIALS)
	$(BIN)/hpo report --format markdown

test: install-test
	$(BIN)/pytest -m "not nightly" -n 3 --dist loadscope --no-loadscope-reorder

check: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test VENV=$(VENV)

nightly: install-test
	$(BIN)/pytest -m nightly --durations=25

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
