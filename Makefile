# Two commands do everything on a fresh machine: `make train-poses` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup train-poses up down status trial test test-all lint ui clean

PYTHON ?= python3
# test files run at a time
JOBS ?= 2
BIN := .venv/bin
UV := 0.13.8
# DVC runs `python -m tasks ...`; this is the python it finds.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true

help:
	@echo "make train-poses            the whole pipeline on the built-in mannequins"
	@echo "make train-poses RAW=DIR    the same on your own folder of pictures (sub-folders are categories)"
	@echo "make up | down | status     Prefect's server, MLflow's, a worker and a watch on the data, all on 127.0.0.1"
	@echo "make trial [SHORT=1]        all of that once, from the first training to a served answer, in a copy"
	@echo "make test | test-all        the tests | with the slow ones"
	@echo "make ui                     compare runs in MLflow on http://127.0.0.1:5000"
	@echo "make lint                   ruff, mypy and codespell"
	@echo "make clean                  remove everything that a run made (not the installation)"

setup: $(BIN)/.installed models/pose_landmarker_full.task

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[dev]'
	touch $@

models/pose_landmarker_full.task: | $(BIN)/.installed
	$(BIN)/python -m tasks.extract.pose_bundle

train-poses: setup
	@$(BIN)/python -m flows train-poses $(if $(RAW),--raw '$(RAW)')

up down status: setup
	@$(BIN)/python -m flows $@

trial: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/trial.py $(if $(SHORT),--short)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m 'slow or not slow' --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

ui: setup
	$(BIN)/python -m tasks.registry.tracking ui

clean:
	rm -rf data artifacts samples reports mlflow.db mlruns .contrapposto
