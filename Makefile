# `make demo` and `make test` each set up what they need. `make help` lists the rest.
.DEFAULT_GOAL := help
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Percent of lines and branches: one under what a package's own tests reach (96, 95, 79), since some branches depend on
# timing; raised as tests come, never lowered. Other tests are not traced: tracing is slow, and CPython 3.11 spins when a
# traced process ends a blocked thread, as transforms do.
MEASURED := tests/gateway tests/core tests/rpc
COVERAGE_FLOORS := gateway/treadle/gateway:95 services/treadle/core:94 services/treadle/rpc:78

.PHONY: help demo up test coverage check protos bench bench-check bench-mesh constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: .venv/demo ## the whole story on real flights (ARGS=--exit ends the mesh afterwards)
	@$(BIN)/treadle demo $(ARGS)

up: .venv/demo ## start the mesh here and leave it running in the foreground
	@$(BIN)/treadle up $(ARGS)

test: .venv/dev ## every test (ARGS="-m 'not slow'" for the quick ones)
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

coverage: .venv/dev ## the tests of gateway, core and rpc, and the share of these packages that they must reach
	@$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report= $(MEASURED)
	for floor in $(COVERAGE_FLOORS); do $(BIN)/coverage report --include="$${floor%:*}/*" --fail-under="$${floor#*:}"; done

check: .venv/dev ## formatting, lint, types, layers
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: .venv/dev ## regenerate the stubs beside the contracts
	@$(BIN)/python protos/generate.py

bench: .venv/dev ## measure Treadle beside its peers (half an hour; ARGS=--quick for what the targets need)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-check: .venv/dev ## name each target that the measured figures miss
	@$(BIN)/python -m benchmarks --check $(ARGS)

bench-mesh: .venv/dev ## measure start-up, memory and request latency of a mesh on this machine
	@$(BIN)/python benchmarks/mesh.py $(ARGS)

constraints: .venv/dev ## write the versions installed now to constraints.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable | sed -E '/^(treadle|setuptools|wheel)/d; s/\+cpu$$//' > constraints.txt

clean: ## remove what was built and installed here (not .treadle, which holds data)
	@rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* build dist

.venv/base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Treadle needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	echo "installing into .venv (once; a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	touch $@

.venv/demo: .venv/base pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

.venv/dev: .venv/base pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,demo]' --group dev
	touch $@
