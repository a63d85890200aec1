# make demo    install, then distil the built-in pair and print a table
# make test    install, then lint, type check and the whole test suite: what CI runs
# make lint    ruff and mypy only
# make bench   the benchmarks
# make clean   remove the virtual environment and the caches

PYTHON ?= python3
# A Python that is named has an environment of its own, so that the suite can be run on each: make PYTHON=python3.13 test
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Newer than both files exactly as long as what they say is installed, so a second `make` installs nothing.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench clean

help:
	@sed -n 's/^# make /make /p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "trl-tempkd needs Python >= 3.11, and $(PYTHON) is older: make PYTHON=python3.11 VENV=.venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# The demo starts `accelerate launch` as a user does: from the environment's bin.
demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m trl_tempkd.tiny.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(STAMP)
	set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
