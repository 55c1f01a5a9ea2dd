# `make up` starts Dray on this machine; `make test` runs every test. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: up down test lint clean

up: $(VENV)/.serving
	$(BIN)/dray up --detach

down:
	$(BIN)/dray down

test: $(VENV)/.testing
	$(BIN)/python -m pytest

lint: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.serving: $(BIN)/python pyproject.toml
	@echo "installing what serving needs into $(VENV) (once; a minute or two)"
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.testing: $(VENV)/.serving
	@echo "installing what the tests need into $(VENV) (once)"
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
