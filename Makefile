# The verbs of this project. `make` alone lists them.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: help setup run test check format proto bench
help:
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(VENV)/.done ## a virtual environment with everything in it
$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

test: setup ## the tests
	$(BIN)/pytest

check: setup ## format, lint, types, import floors, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python sh src/orlop/api/generate.sh --check

format: setup ## rewrite the sources as the formatter wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: setup ## Python from the .proto files
	PYTHON=$(BIN)/python sh src/orlop/api/generate.sh
