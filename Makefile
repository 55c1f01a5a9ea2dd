# `make up` starts Dray on this machine; `make test` runs every test. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Export needs torch; its CPU build is at https://download.pytorch.org/whl/cpu (set PIP_EXTRA_INDEX_URL to that).
TORCH ?= torch==2.13.0
EXPORT_VENV := .venv-export

.PHONY: up down bench docs test test-slow chaos test-export lint clean

up: $(VENV)/.serving
	$(BIN)/dray up --detach

down:
	$(BIN)/dray down

# Measures the Dray that runs here.
bench: $(VENV)/.serving
	$(BIN)/dray bench

# Into build/site.
docs: $(VENV)/.documenting
	$(BIN)/python -m mkdocs build --strict

test: $(VENV)/.testing
	$(BIN)/python -m pytest

test-slow: $(VENV)/.testing
	$(BIN)/python -m pytest -m slow

# Needs root, for network namespaces. Writes chaos-report.md.
chaos: $(VENV)/.testing
	$(BIN)/python -m pytest -m chaos -s

test-export: $(EXPORT_VENV)/.testing
	$(EXPORT_VENV)/bin/python -m pytest tests/export

lint: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(EXPORT_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.serving: $(BIN)/python pyproject.toml
	@echo "installing what serving needs into $(VENV) (once; a minute or two)"
	$(BIN)/pip install --quiet --editable '.[page]'
	touch $@

$(VENV)/.documenting: $(VENV)/.serving
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.testing: $(VENV)/.serving
	@echo "installing what the tests need into $(VENV) (once)"
	$(BIN)/pip install --quiet --editable '.[plan,test]'
	touch $@

# Apart from .venv: serving and its tests must do without torch. torchvision comes with optimum-intel, is not needed
# for text, and breaks the import where its version does not match torch's.
$(EXPORT_VENV)/.testing: pyproject.toml
	$(PYTHON) -m venv $(EXPORT_VENV)
	$(EXPORT_VENV)/bin/pip install --quiet $(TORCH)
	$(EXPORT_VENV)/bin/pip install --quiet --editable '.[export,test]' $(TORCH)
	$(EXPORT_VENV)/bin/pip uninstall --quiet --yes torchvision
	touch $@
