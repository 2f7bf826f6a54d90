# Two commands do everything on a fresh machine: `make train-poses` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup venv train-poses train-motion train-video up down status trial test test-all lint ui clean

PYTHON ?= python3
# test files run at a time
JOBS ?= 2
BIN := .venv/bin
UV := 0.13.8
# Tools that the stages start find this Python first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true
# The shell gets RAW as a variable, whatever quotes, spaces and dollar signs are in it.
export CONTRAPPOSTO_RAW := $(value RAW)

# The stamp of a complete installation names this folder. An environment that was moved is made again: its scripts and its link
# to this code name the old folder. (A link to an environment elsewhere is left alone.)
MOVED := $(shell test -L .venv || test "$$(cat $(BIN)/.installed 2>/dev/null)" = "$$(pwd -P)" || echo yes)
ifeq ($(MOVED),yes)
.PHONY: $(BIN)/.installed
endif
RUNS_AND_IS_NEW := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1

help:
	@echo "make train-poses            the whole pipeline on the built-in mannequins"
	@echo "make train-poses RAW=DIR    the same on your own folder of pictures (sub-folders are categories)"
	@echo "make train-motion           a model of motion: built-in animation, and RAW's videos and motion captures"
	@echo "make train-video            clips of people in motion, drawn by the picture model with attention over time"
	@echo "make up | down | status     Prefect's server, MLflow's, a worker and a watch for new data, all on 127.0.0.1"
	@echo "make trial [SHORT=1]        the whole life cycle once, in a copy of the project (ENGINE=ray: docs/scaling.md)"
	@echo "make test | test-all        the tests | with the slow ones"
	@echo "make ui                     compare runs in MLflow on http://127.0.0.1:5000"
	@echo "make lint                   ruff, mypy and codespell"
	@echo "make clean [DRY_RUN=1]      remove everything that runs made | only list it"

setup: $(BIN)/.installed models/pose_landmarker_full.task

$(BIN)/.installed: pyproject.toml constraints.txt
	@test -L .venv || ! test -s $@ || test "$$(cat $@)" = "$$(pwd -P)" || rm -rf .venv
	@$(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[dev]'
	@pwd -P > $@

# An earlier attempt may have left an environment of an old Python, or one without pip.
venv:
	@case "$$(pwd -P)" in *[%?]*) \
		echo "contrapposto: MLflow cannot work in a folder with % or ? in its path; move this project." >&2; exit 2;; \
	esac
	@set -e; \
	if ! $(BIN)/python $(RUNS_AND_IS_NEW); then \
		if test -L .venv; then \
			echo "contrapposto: .venv is a link to an environment that cannot be used; remove the link." >&2; exit 2; \
		fi; \
		if ! $(PYTHON) $(RUNS_AND_IS_NEW); then \
			echo "contrapposto: $(PYTHON) is not Python 3.11 or newer; name another: make setup PYTHON=python3.12" >&2; exit 2; \
		fi; \
		if ! $(PYTHON) -m venv --clear .venv; then \
			rm -rf .venv; \
			echo "contrapposto: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 2; \
		fi; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1 && ! $(BIN)/python -m ensurepip >/dev/null 2>&1; then \
		echo "contrapposto: .venv has no pip; on Debian: apt-get install python3-venv" >&2; exit 2; \
	fi

models/pose_landmarker_full.task: | $(BIN)/.installed
	$(BIN)/python -m tasks.extract.pose_bundle

train-poses: setup
	@$(BIN)/python -m flows train-poses $${CONTRAPPOSTO_RAW:+"--raw=$$CONTRAPPOSTO_RAW"}

train-motion: setup
	@$(BIN)/python -m flows train-motion $${CONTRAPPOSTO_RAW:+"--raw=$$CONTRAPPOSTO_RAW"}

train-video: setup
	@$(BIN)/python -m flows train-video $${CONTRAPPOSTO_RAW:+"--raw=$$CONTRAPPOSTO_RAW"}

up down status: setup
	@$(BIN)/python -m flows $@

trial: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/trial.py $(if $(SHORT),--short) $(if $(ENGINE),--engine $(ENGINE))

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m 'slow or not slow' --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/codespell

ui: setup
	$(BIN)/python -m tasks.registry.ui

clean: setup
	@$(BIN)/python -m flows clean $(if $(DRY_RUN),--dry-run)
