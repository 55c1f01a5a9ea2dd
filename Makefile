# `make up` starts Dray on this machine; `make test` runs the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Export needs torch; its CPU build is at https://download.pytorch.org/whl/cpu (set PIP_EXTRA_INDEX_URL to that).
TORCH ?= torch==2.13.0
EXPORT_VENV := .venv-export

# All but the tests of a running service, which measure times and so run alone. A file's tests share fixtures. Much of their
# time is waiting for processes that start, so three run at a time on two cores.
UNIT_TESTS := --ignore tests/service --numprocesses 3 --dist loadfile

# `call` splits its arguments at commas.
comma := ,

# Runs a pip command: a line that changes on a terminal, a line at the end, and all of the output only if it fails. What
# other packages warn of is no news here.
define pip
@$(1) > .pip.log 2>&1 & pip=$$!; \
while kill -0 $$pip 2> /dev/null; do \
	! [ -t 1 ] || printf '\r\033[K   %.70s' "$$(grep -E '^ *(Collecting|Downloading|Building|Installing)' .pip.log | tail -n 1)"; \
	sleep 1; \
done; \
! [ -t 1 ] || printf '\r\033[K'; \
wait $$pip || { cat .pip.log; rm .pip.log; exit 1; }; \
awk '/^Successfully installed/ { print "   installed " NF - 2 " packages" }' .pip.log; rm .pip.log
endef

# Tests start hundreds of processes. Where the environment forbids Python to keep compiled modules, each would compile anew
# what it imports of Dray.
test coverage test-slow chaos: export PYTHONDONTWRITEBYTECODE =

.PHONY: up down bench docs test coverage test-slow chaos test-export lint constraints image clean

up: $(VENV)/.serving
	@echo "== starting Dray"
	$(BIN)/dray up --detach

down:
	@echo "== stopping Dray"
	$(BIN)/dray down

bench: $(VENV)/.serving
	@echo "== measuring the Dray that runs on this machine"
	$(BIN)/dray bench

docs: $(VENV)/.documenting
	@echo "== building the documentation into build/site"
	$(BIN)/python -m mkdocs build --strict

test: $(VENV)/.testing
	@echo "== running the unit tests, three files at a time (11 minutes)"
	$(BIN)/python -m pytest $(UNIT_TESTS)
	@echo "== running the tests of a Dray that they start (10 minutes)"
	$(BIN)/python -m pytest tests/service

# The floor is in pyproject.toml.
coverage: $(VENV)/.testing
	@echo "== running the unit tests, and measuring which lines they reach"
	$(BIN)/python -m pytest $(UNIT_TESTS) --cov --cov-report=term:skip-covered

test-slow: $(VENV)/.testing
	@echo "== running the tests that take minutes each"
	$(BIN)/python -m pytest -m slow

chaos: $(VENV)/.testing
	@echo "== killing what can be killed, then stopping it too, five minutes each (needs root); see chaos-report*.md"
	$(BIN)/python -m pytest -m chaos -s

test-export: $(EXPORT_VENV)/.testing
	@echo "== running the tests of model export"
	$(EXPORT_VENV)/bin/python -m pytest tests/export

lint: $(VENV)/.testing
	@echo "== checking style"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== checking types (two minutes)"
	$(BIN)/mypy

# The image installs exactly these versions; pyproject.toml says which are possible.
constraints:
	@echo "== choosing the newest versions that pyproject.toml allows, into constraints.txt"
	$(PYTHON) -m venv build/uv
	$(call pip,build/uv/bin/pip install uv)
	build/uv/bin/uv pip compile pyproject.toml --extra buckets --universal --python-version 3.11 --generate-hashes --upgrade \
		--quiet --custom-compile-command "make constraints" --output-file constraints.txt

image:
	@echo "== building the images for amd64 and arm64, with SBOM and provenance, and pushing them to REPOSITORY"
	base=$$(k8s/pinned-base.sh) && PYTHON_IMAGE="$$base" docker buildx bake --file k8s/docker-bake.json --push

clean:
	@echo "== deleting environments, caches and what was built"
	rm -rf $(VENV) $(EXPORT_VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "== creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(call pip,$(BIN)/pip install --upgrade pip)

$(VENV)/.serving: $(BIN)/python pyproject.toml
	@echo "== installing what serving needs into $(VENV) (once; a minute or two)"
	$(call pip,$(BIN)/pip install --editable '.[page$(comma)plan]')
	@touch $@

$(VENV)/.documenting: $(VENV)/.serving
	@echo "== installing what the documentation needs into $(VENV) (once)"
	$(call pip,$(BIN)/pip install --editable '.[docs]')
	@touch $@

$(VENV)/.testing: $(VENV)/.serving
	@echo "== installing what the tests need into $(VENV) (once)"
	$(call pip,$(BIN)/pip install --editable '.[plan$(comma)test]')
	@touch $@

# Apart from .venv: serving and its tests must do without torch. torchvision comes with optimum-intel, is not needed
# for text, and breaks the import where its version does not match torch's.
$(EXPORT_VENV)/.testing: pyproject.toml
	@echo "== installing what export needs into $(EXPORT_VENV) (once; torch alone is 200 MB)"
	$(PYTHON) -m venv $(EXPORT_VENV)
	$(call pip,$(EXPORT_VENV)/bin/pip install $(TORCH))
	$(call pip,$(EXPORT_VENV)/bin/pip install --editable '.[export$(comma)test]' $(TORCH))
	$(EXPORT_VENV)/bin/pip uninstall --quiet --yes torchvision
	@touch $@
