# Examples: make train ENV=gym ARGS="env.id=CartPole-v1"; make train ALGO=a2c STEPS=1_000_000
PYTHON ?= python3
VENV ?= .venv
ENV ?= atari/pong
ALGO ?= ppo
STEPS ?= 100_000
ARGS ?=
# Two test processes. Each takes one file at a time, in the order of collection: long files first.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

# Marks a finished setup: `make setup` does nothing while this file is newer than its sources.
STAMP := $(VENV)/.installed

# The same for the tools of the documentation.
DOCS_STAMP := $(VENV)/.docs-installed

# On Linux, the package index has PyTorch with CUDA, a download of several GB.
CPU_TORCH = $(VENV)/bin/python -m pip install $(shell grep ^torch== constraints.txt) \
	--index-url https://download.pytorch.org/whl/cpu

.PHONY: setup football train test test-unit test-slow coverage check format reference docs \
	docs-serve clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip show --quiet torch 2>/dev/null || echo \
		"Installing PyTorch, on Linux with CUDA (several GB). For PyTorch without CUDA, press" \
		"Ctrl-C, run this command and then make again:  $(CPU_TORCH)"
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Builds Google Research Football the first time (several minutes); takes seconds after that.
football: $(STAMP)
	scripts/install_football $(VENV)

train: $(STAMP)
	$(VENV)/bin/htsrl train env=$(ENV) algo=$(ALGO) total_steps=$(STEPS) $(ARGS)

# Football's tests are skipped unless its engine is installed (make football).
test: $(STAMP)
	$(VENV)/bin/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-unit: $(STAMP)
	$(VENV)/bin/python -m pytest tests/unit -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

# Reports which lines of htsrl_cli `make test` runs, worker processes and commands included.
coverage: $(STAMP)
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest -m "not slow" $(PARALLEL) $(ARGS)
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report

check: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check

format: $(STAMP)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# Writes the generated parts of docs/reference.
reference: $(STAMP)
	$(VENV)/bin/python -m scripts.reference

# Builds the site into build/site, to be opened there or published. A warning or a stale page is an
# error.
docs: $(DOCS_STAMP)
	$(VENV)/bin/python -m scripts.reference --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# Serves the site, search included, at http://127.0.0.1:8000; builds it again when a page changes.
docs-serve: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve

$(DOCS_STAMP): $(STAMP)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
