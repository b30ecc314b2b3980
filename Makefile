# Two commands do all the set-up: `make quickstart` and `make test`. PYTHON names another interpreter than python3.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin

.PHONY: quickstart test test-lowest clean
quickstart: .venv/run.stamp
	$(BIN)/inheritune quickstart

test: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

# The tests on the lowest versions that pyproject.toml allows: downloads a torch with CUDA, about 3 GB.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet uv
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct --editable ".[dev]"
	$(LOWEST)/pytest

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name a newer one, for example make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ .venv/run.stamp

clean:
	rm -rf .venv .venv-lowest .pytest_cache .mypy_cache .ruff_cache
