# Everything runs from a virtual environment in .venv, made on first use from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-all lint bench clean

quickstart: $(VENV)/.quickstart
	$(VENV)/bin/python examples/quickstart.py --output_dir runs/quickstart

test: lint
	$(VENV)/bin/python -m pytest

test-all: lint
	$(VENV)/bin/python -m pytest -m "not realdata"

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.bench
	$(VENV)/bin/python examples/benchmark_cache.py
	$(VENV)/bin/python examples/benchmarks

$(VENV)/.quickstart: EXTRAS = vision
$(VENV)/.dev: EXTRAS = dev
$(VENV)/.bench: EXTRAS = bench
$(VENV)/.quickstart $(VENV)/.dev $(VENV)/.bench: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs
