# Needs Python 3.11 or newer, git, make and a package index; `make setup` brings everything else.
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
BIN := .venv/bin
SOURCES := operator trainer_image cli local
CRD := crds/trainingjobs.trainingjob.io.yaml

# The big wheels over a slow line.
export UV_HTTP_TIMEOUT ?= 300

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "Python 3.11 or newer is needed, and $(PYTHON) is not. Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
endef

heading = @printf '\n\033[1m== %s\033[0m\n' $(1)

.PHONY: help
help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.complete ## Install the locked dependencies into .venv (once)
	@# Also where PYTHONDONTWRITEBYTECODE is set: without bytecode, each of Ray's workers would compile all it imports.
	@$(BIN)/python -m compileall -q $(SOURCES)

.venv/.complete: pyproject.toml uv.lock | $(UV)
	$(check_python)
	$(call heading,'Set-up: PyTorch$(,) Ray and the rest into .venv (7 GB; 3-15 minutes when nothing is cached$(,) by the network)')
	$(UV) sync --frozen --all-extras --compile-bytecode --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@

.venv/.peers: .venv/.complete | $(UV)
	$(call heading,'The trainers that ours is measured against$(,) into .venv (seconds)')
	$(UV) sync --frozen --all-extras --group bench --compile-bytecode
	@touch $@

.uv/bin/uv:
	$(check_python)
	$(call heading,'uv is not on PATH: installing it into .uv (10 seconds)')
	@$(PYTHON) -m venv .uv || { \
	  echo "$(PYTHON) can't make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
	  rm -rf .uv; exit 1; }
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.PHONY: demo
demo: setup ## Watch a job go from text in S3 to a trained model, on a local cluster (CHAOS=1: a worker is killed)
	@$(BIN)/trainingjob demo $(if $(CHAOS),--chaos)

.PHONY: test
test: SELECTED := -m "not slow"
test: TAKES := 12 to 20 minutes
test: on-cluster ## Everything but what takes many minutes

.PHONY: test-all
test-all: PROGRAMS := --all
test-all: SELECTED := --hypothesis-profile=search
test-all: TAKES := an hour or more
test-all: on-cluster ## Everything

.PHONY: test-mutants
test-mutants: setup ## Put seven bugs into the trainer, one at a time: the tests must find each (5 minutes)
	@$(BIN)/python -m trainingjob_local.binaries
	@$(BIN)/python tests/mutants.py

.PHONY: on-cluster
on-cluster: lint
	$(call heading,'Control plane: etcd$(,) kube-apiserver and the others (seconds when cached$(,) else 5 to 15 minutes)')
	$(BIN)/python -m trainingjob_local.binaries $(PROGRAMS)
	$(call heading,'All tests$(,) two lanes at once: units$(,) faults and whole runs; clusters meanwhile ($(TAKES))')
	$(BIN)/python tests/lanes.py $(SELECTED)

.PHONY: bench-operator
bench-operator: setup ## Measure the operator with many jobs on nodes that KWOK plays (N=500, ROUNDS=3, SUSPENDED=10000, KUBERAY=1)
	@$(BIN)/python -m trainingjob_local.binaries
	@$(BIN)/python -m trainingjob_local.binaries kwok
	@$(if $(KUBERAY),$(BIN)/python -m trainingjob_local.binaries --sources kuberay-operator)
	@$(BIN)/python -m trainingjob_local.sandbox -- $(BIN)/python -m benchmarks.operator_scale \
	  $(if $(N),--jobs $(N)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SUSPENDED),--suspended $(SUSPENDED)) $(if $(KUBERAY),--kuberay)

.PHONY: test-gpu
test-gpu: setup ## What only a GPU shows (a minute; all skipped where there is none)
	@$(BIN)/pytest tests/gpu

.PHONY: bench-gpu
bench-gpu: setup ## Measure the trainer on one GPU: tokens a second, MFU, what a save costs (5 minutes)
	@$(BIN)/python -m benchmarks.trainer.gpu

.PHONY: bench-trainer
bench-trainer: setup .venv/.peers ## Measure the trainer against its peers and what it is built on (SUBJECTS="loops loader")
	@$(BIN)/python -m trainingjob_local.sandbox -- $(BIN)/python -m benchmarks.trainer $(SUBJECTS)

.PHONY: unit
unit: setup ## Unit tests
	$(call heading,'Unit tests$(,) real S3 and torch in several processes among them (4 to 8 minutes)')
	$(BIN)/pytest tests/unit -m "not slow"

.PHONY: lint
lint: setup ## Style, types, and who may import whom
	$(call heading,'Lint (seconds; a minute for mypy when nothing is cached)')
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: setup ## Format the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: crds
crds: setup ## Generate the CustomResourceDefinition, and the chart's copy of it, from the models
	$(BIN)/python -m trainingjob_operator.api.crd > $(CRD).tmp
	mv $(CRD).tmp $(CRD)
	cp $(CRD) helm/trainingjob-operator/files/

.PHONY: up
up: setup ## Keep a local cluster with the operator and S3 running
	@$(BIN)/trainingjob local up

.PHONY: down
down: setup ## Stop it
	@$(BIN)/trainingjob local down

# A comma in an argument of $(call ...).
, := ,
