# One entry for developers; every target is a line or two, so that CI and you run the same.
SHELL := /bin/bash
VENV ?= .venv
export VENV
BIN := $(VENV)/bin
SEEDS ?= 10000
SEED ?=
MINUTES ?= 1
KILLS ?= 50
TASKS ?= 100000
REPORT ?= soak.md
WORKERS ?= 200
CHAOS := PYTHONPATH=src:tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED))
OTHER_PYTHONS := 3.12 3.13

.DEFAULT_GOAL := help
.PHONY: help setup fmt check test test-all bench proto lock sim planted chaos chaos-heads herd soak demo clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Make or refresh .venv with everything for development
	@./install.sh --dev

fmt: setup  ## Format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: setup  ## Format, lint, types, import contracts, generated code, architecture
	@tools/check.sh

test: setup  ## Run the tests; ARGS='-k name' goes to pytest
	$(BIN)/python -m pytest $(ARGS)

test-all: test  ## Run the tests on the other supported Pythons too, where they are installed
	@for version in $(OTHER_PYTHONS); do \
	  if ! python=$$(tools/find_python.sh $$version); then echo "test-all: no Python $$version here"; continue; fi; \
	  echo "test-all: Python $$version"; \
	  VENV=.venv-$$version PYTHON=$$python ./install.sh --dev && \
	  .venv-$$version/bin/python -m pytest $(ARGS) || exit 1; \
	done

bench:  ## Compare with the peers on this machine (installs them first); ARGS goes to the benchmark
	@./install.sh --bench
	$(BIN)/python benchmarks/compare.py $(ARGS)

proto: setup  ## Generate the Python code from the .proto files
	$(BIN)/python tools/gen_proto.py

lock: setup  ## Pin the newest allowed versions with their hashes: requirements/*.txt
	$(BIN)/python tools/lock.py

sim: setup  ## Run the simulation over many seeds: make sim SEEDS=10000
	$(BIN)/python -m pytest tests/sim -s --sim-seeds=$(SEEDS) --timeout=0 -o faulthandler_timeout=0

planted: setup  ## Plant known bugs, and demand that the tests notice each: make planted ARGS=b3
	$(BIN)/python tools/planted_bugs.py $(ARGS)

chaos: setup  ## Faults by a seed on a real cluster: make chaos SEED=7 MINUTES=10; ARGS='--faults kill_head'
	$(CHAOS) --minutes $(MINUTES) $(ARGS)

chaos-heads: setup  ## kill -9 of the head under load, clients may only see pauses: make chaos-heads KILLS=50
	$(CHAOS) --kill-heads $(KILLS) $(ARGS)

herd: setup  ## Many workers come back at once after a kill -9 of the head: make herd WORKERS=200
	HERD_WORKERS=$(WORKERS) PYTHONPATH=src:tests $(BIN)/python -m pytest -q -s tests/e2e/test_herd.py

soak: setup  ## Many tasks under faults, memory and files have to stay flat: make soak TASKS=1000000 REPORT=soak.md
	$(CHAOS) --soak $(TASKS) --report $(REPORT) $(ARGS)

demo:  ## A head, two workers and a tour, on this machine
	@./start.sh demo

clean:  ## Remove environments, caches and what builds leave
	rm -rf .venv .venv-* .venv*.lock build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
