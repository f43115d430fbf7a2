# The same checks as .ci/run, on what stands in .venv (make setup).
python ?= .venv/bin/python

.PHONY: setup check test slow lint format types

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -e ".[dev]"

check: lint types test

test:
	$(python) -m pytest -q

slow:
	$(python) -m pytest -q -m "slow or memory"

lint:
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m codespell_lib

format:
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

types:
	$(python) -m mypy
