# Everything needs only git, make and Python 3.11 or newer; the first target that runs sets up .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: help demo test lint bench clean
help:
	@echo "make demo   train on the sample shards, evaluate, and write $(RUN)/report.html"
	@echo "make test   lint, types and tests"
	@echo "make lint   ruff and mypy alone"
	@echo "make bench  what limits this machine, into benchmarks/results/"
	@echo "make clean  remove the virtual environment and the demo's run"

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv $(RUN)
