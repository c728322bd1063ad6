# Every target sets up what it needs; a second call does not install again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG := configs/sum_mod_10.yaml
PYTEST := -n auto --dist worksteal --durations 15
RUN := runs/sum_mod_10/$(shell date +%Y-%m-%d_%H-%M-%S)
PYTHONS := python3.11 python3.12 python3.13

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-pythons chaos check format golden docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

install: $(VENV)/installed ## create .venv and install rnncls with its development tools

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fast,sweep,files,text]'
	@touch $@

train: install ## the main job: train configs/sum_mod_10.yaml and evaluate it
	$(BIN)/rnncls train --config $(CONFIG) --run-dir $(RUN)
	$(BIN)/rnncls eval $(RUN)
	@echo
	@echo "curves: $(BIN)/rnncls board"

# Two threads that wait for each other would keep both cores busy, and the other tests waiting.
test test-slow: export OMP_WAIT_POLICY := passive

# Where this is set, each worker would read every module's source and rewrite its assertions anew.
test test-slow chaos: export PYTHONDONTWRITEBYTECODE :=

test: install ## the quick tests
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-slow: install ## the tests that are statistical, exhaustive or long
	$(BIN)/python -m pytest -m slow $(PYTEST)

# By hand: each Python gets an environment of its own. One that only a version manager knows and that
# does not start counts as not installed.
test-pythons: ## the quick tests on every supported Python that is installed
	@failed=; for python in $(PYTHONS); do \
	  if ! $$python -c '' 2> /dev/null; then echo "$$python: not installed"; continue; fi; \
	  echo "$$python:"; \
	  $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$python || failed="$$failed $$python"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed on$$failed"; exit 1; fi

chaos: install ## kill, stop, starve and damage runs and files at length, and print what came of it
	$(BIN)/python -m scripts.chaos --jobs 2
	$(BIN)/python -m scripts.mutate_files

check: install ## ruff, mypy --strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: install ## rewrite the golden losses; say in the commit why they moved
	$(BIN)/python -m scripts.golden

docs: install ## rewrite docs/config.md from the schema
	$(BIN)/python -m scripts.config_page

clean: ## remove what make and the tools created; runs/ stays
	rm -rf $(VENV) .venv-python3* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
