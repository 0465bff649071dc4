# Each target makes the environment that it needs in .venv, from python3 >= 3.11 alone; nothing is installed globally.
PYTHON ?= python3
VENV ?= .venv
OUT ?= build/demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := examples/tiny-qwen3.5
PROMPT ?= Write two sentences about the sea.

.PHONY: help env demo test check bars lint format clean

help:
	@echo "make demo    convert the embedded model, show the report, let it speak (under 3 minutes)"
	@echo "make test    style, types and the default tests (under 5 minutes)"
	@echo "make check   everything, the slow tests too (under 60 minutes)"
	@echo "make bars    print every benchmark bar and whether it is met"
	@echo "make lint    style and types alone;  make format  rewrites the style"

env: $(READY)

# The stamp is keyed on what decides the environment's content.
$(READY): pyproject.toml $(wildcard native/* native/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "optiq needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/optiq convert $(MODEL) --target-bpw 5.0 --candidate-bits 4,8 --calibration-samples 8 --calibration-length 128 -o $(OUT) --overwrite
	$(BIN)/optiq inspect $(OUT)
	$(BIN)/python -m mlx_lm generate --model $(OUT) --prompt "$(PROMPT)" --max-tokens 60 --temp 0

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

check: lint
	$(BIN)/python -m pytest -m ""

bars: $(READY)
	$(BIN)/python benchmarks/bars.py

clean:
	rm -rf $(VENV) build dist
