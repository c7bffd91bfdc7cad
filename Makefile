# Everything a newcomer needs; bare `make` lists it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SECONDS_OF_FUZZ ?= 600
EXT_SOURCES := setup.py $(wildcard ext/*.pyx ext/*.h)

export REQUIRE_EXT := 1
# a process that starts compiles nothing again, and tests start hundreds
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types contracts check bench eval-insight eval-firmware eval-health chaos soak fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/.server: ops/requirements/server.txt
	@echo "making the virtual environment"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r $<
	@touch $@

.venv/.installed: .venv/.server pyproject.toml $(EXT_SOURCES)
	@echo "building the compiled decoder"
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

.venv/.dev: ops/requirements/dev.txt .venv/.server
	@echo "installing the development tools"
	@$(PIP) install --require-hashes -r $<
	@touch $@

.venv/.assets: .venv/.server $(wildcard ops/assets/*.json)
	@echo "fetching the pages' script and style files"
	@$(BIN)/python -m ops.assets
	@touch $@

setup: .venv/.installed .venv/.dev .venv/.assets ## install everything for development

demo: .venv/.installed .venv/.assets ## run the main job with everything real (DEMO_SECONDS=60 for a proof that ends)
	@$(BIN)/vestibule demo

test: setup ## run the tests (under 12 minutes on two cores)
	@VESTIBULE_REQUIRE_EXT=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy, strict
	@$(BIN)/mypy

contracts: setup ## who may import whom
	@$(BIN)/lint-imports

check: lint types contracts test ## what CI runs

bench: setup ## measure, each figure beside its limit; writes tests/bench/results.json
	@$(BIN)/vestibule bench

eval-insight: setup ## measure what the models of counts promise; fails where one is missed
	@$(BIN)/python -m ops.eval_insight

eval-firmware: setup ## measure what the counts guard of rollouts halts, and what it halts for nothing
	@$(BIN)/python -m ops.eval_firmware

eval-health: setup ## measure what is found of faults in counts, how soon, and what cries wolf
	@$(BIN)/python -m ops.eval_health

chaos: setup ## two minutes of SIGKILL under load, then proof that nothing is lost
	@$(BIN)/python -m ops.chaos --seconds 120

fuzz: setup ## fuzz the compiled decoder under AddressSanitizer (SECONDS_OF_FUZZ=600)
	@$(BIN)/python -m ext.fuzz $(SECONDS_OF_FUZZ)

soak: setup ## what takes longer than a test may: fuzz, chaos, big fleets, years of replay
	@$(BIN)/python -m ops.soak

clean: ## remove everything that was installed or made here, the demo's data included
	@test ! -x $(BIN)/python || $(BIN)/python -m ops.clean
	@rm -rf .venv build *.egg-info ext/_decoder.c ext/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .vestibule/assets
	@find . -name __pycache__ -prune -exec rm -rf {} +
