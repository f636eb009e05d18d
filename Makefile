# vmesh: everything a fresh checkout needs, with Python 3.11 and pip on the host. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
# -P: no module from the current directory before others.
PY     := $(VENV)/bin/python
RUN    := $(PY) -P
PIP    := $(RUN) -m pip --disable-pip-version-check
VMESH  := $(VENV)/bin/vmesh

# Module that builds the interpreter's native blob ahead of the first run.
NATIVE_BUILD ?= vmesh_services.cpu.compile
# Further flags for `make run`, for example RUN_FLAGS="-smp 4 -m 1G".
RUN_FLAGS    ?=
# Further flags for pytest, for example PYTEST_FLAGS="-k board".
PYTEST_FLAGS ?=
# Further flags for uv, for example LOCK_FLAGS="--upgrade-package rich".
LOCK_FLAGS   ?=
# Two more than there are cores, as many tests wait.
PYTEST_JOBS  ?= $(shell echo $$(($$(nproc) + 2)))

# The container image, and what it stands on: any image with the Python of .venv.
IMAGE      ?= vmesh
IMAGE_BASE ?= python:$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-slim-bookworm
DOCKER     ?= docker

PROTOS         := $(shell find proto -name '*.proto' 2>/dev/null)
NATIVE_SOURCES := $(shell find services/cpu -name '*.py' 2>/dev/null)

.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
.PHONY: help setup dev guest run image test pytest test-modes test-peers lint bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.native ## fill .venv, generate the protobuf code, build the native code (the default)

dev: setup $(VENV)/.dev ## setup, and the tools that test and lint need

guest: setup ## fetch the Debian guest unless it is cached
	@$(VMESH) guest fetch --if-missing || echo "make: no Debian guest: the small built-in guest takes its place" >&2

run: guest ## boot the default guest on this terminal
	@$(VMESH) run $(RUN_FLAGS)

image: guest ## build the container image IMAGE upon IMAGE_BASE, with docker or DOCKER
	@$(RUN) tools/image.py
	$(DOCKER) build --network none --build-arg BASE=$(IMAGE_BASE) --file deploy/Dockerfile --tag $(IMAGE) .

test: dev guest ## lint, types, and every test
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: dev
	$(RUN) -m pytest -n $(PYTEST_JOBS) $(PYTEST_FLAGS)

test-modes: dev ## the cpu's tests in each mode: all code translated, about half of it
	VMESH_CPU_MODE=translate $(RUN) -m pytest -n $(PYTEST_JOBS) $(PYTEST_FLAGS) tests/unit tests/peers
	VMESH_CPU_MODE=both $(RUN) -m pytest -n $(PYTEST_JOBS) $(PYTEST_FLAGS) tests/unit tests/peers

test-peers: ## install the programs that tests compare against (Debian, as root)
	tools/test_peers.sh

lint: dev ## ruff and mypy --strict
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: dev guest ## print what we claim beside the peers' figures
	$(RUN) -m bench

lock: $(VENV)/.dev ## renew the lock files after pyproject.toml changed (needs uv), or with LOCK_FLAGS=--upgrade
	tools/lock.sh $(LOCK_FLAGS)

clean: ## remove everything that was built here
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis vmesh/v1 *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian splits venv's pip into a package of its own: without it, the host's pip fills the new environment.
$(PY):
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed, found none" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -P -m venv $(VENV) || { \
	  $(PYTHON) -P -m venv --without-pip --clear $(VENV) && \
	  $(PYTHON) -P -m pip --python $(PY) install pip; }

$(VENV)/.requirements: requirements.lock | $(PY)
	$(PIP) install --quiet --require-hashes -r requirements.lock
	@touch $@

# The build backend generates the protobuf code.
# `compat`: a plain path entry; the import hook of the other mode costs every process of the machine start-up time.
$(VENV)/.project: pyproject.toml tools/build_backend.py tools/generate_proto.py $(PROTOS) $(VENV)/.requirements
	$(PIP) install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.project
	$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.native: $(NATIVE_SOURCES) $(VENV)/.project
	$(if $(wildcard $(subst .,/,$(NATIVE_BUILD)).py),$(RUN) -m $(NATIVE_BUILD))
	@touch $@
