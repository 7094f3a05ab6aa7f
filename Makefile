# make run     serve the examples for real
# make test    all tests              make check   ruff and mypy --strict
# make bench   measure against the standard library, and against every peer that can be installed
# make reliability  do what goes wrong to real servers, and write docs/reliability.md (12 minutes)
# make soak    watch memory under a mixed load for SOAK=600 seconds, and count 100,000 forks, for the same page
# make faults  show that the tests of mended faults fail on the standard library's module

PYTHON ?= python3
PORT ?= 9999
SOAK ?= 600
BIN := .venv/bin

.PHONY: run test check bench reliability soak faults clean

run: .venv/installed
	@$(BIN)/python -m examples.everything $(PORT)

test: .venv/developing
	$(BIN)/pytest

check: .venv/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/developing
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]' || \
		echo 'Not all peers could be installed: those that are missing are left out.'
	$(BIN)/python -m bench
	$(BIN)/python -m bench peers

reliability: .venv/developing
	$(BIN)/python -m reliability

soak: .venv/developing
	$(BIN)/python -m reliability --soak $(SOAK)

faults: .venv/developing
	$(BIN)/pytest tests/faults --against socketserver --all-must-fail -m "not new_feature and not regression" -q --tb=no

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/build

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Portico needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/developing: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@
