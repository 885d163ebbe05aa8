# make train ENV=gym ARGS="env.id=CartPole-v1"    make train ALGO=a2c STEPS=1_000_000
PYTHON ?= python3
VENV ?= .venv
ENV ?= atari/pong
ALGO ?= ppo
STEPS ?= 100_000
ARGS ?=

# Changes with what is installed; as long as it is newer than its sources, set-up takes no time.
STAMP := $(VENV)/.installed

.PHONY: setup football train test test-slow check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Builds Google Research Football once (some minutes), then takes seconds.
football: $(STAMP)
	scripts/install_football $(VENV)

train: $(STAMP)
	$(VENV)/bin/htsrl train env=$(ENV) algo=$(ALGO) total_steps=$(STEPS) $(ARGS)

test: football
	$(VENV)/bin/python -m pytest -m "not slow" $(ARGS)

test-slow: football
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

check: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check

format: $(STAMP)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
