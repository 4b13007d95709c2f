# `make demo` and `make test` need nothing but Python; each makes the environment in .venv by itself.
#   PYTHON=/path/to/python3.11   the Python to make it with (default: the first that fits)
#   ARGS='-k accuracy'           for pytest
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# The long ones first: Docker's, then integration, then unit.
SPREAD := --dist loadfile --no-loadscope-reorder

.PHONY: help demo test lint format doctor wheelhouse docker-image docker-base clean distclean

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## train a model, build, serve, load test, verdict: a few minutes beside the downloads
	@$(BIN)/python examples/digits/demo.py

test: $(VENV)/.dev ## environment and the whole test suite
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest -m 'not calm' --numprocesses auto --maxprocesses 8 $(SPREAD)
	$(BIN)/python -m pytest -m calm --numprocesses 2 $(SPREAD)
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the sources in the house's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

doctor: $(VENV)/.demo ## what works on this machine, and what is missing
	@$(BIN)/tritongen doctor

# Wheels for the image's Python, not for this one's. tritongen's own is made anew each time, the others once.
WHEELHOUSE := docker/wheelhouse
WHEELS_FOR := --only-binary=:all: --implementation cp --python-version 3.11 $(addprefix --platform manylinux_2_,17_x86_64 27_x86_64 28_x86_64 34_x86_64 35_x86_64) --platform manylinux2014_x86_64
wheelhouse: $(VENV)/.demo ## fill docker/wheelhouse, from which the CPU image is built without a network
	@set -e; new=$$(mktemp -d -p $(WHEELHOUSE)); trap 'rm -rf '$$new EXIT; \
	$(PIP) wheel --quiet --no-deps --wheel-dir $$new .; \
	for old in $(WHEELHOUSE)/tritongen-*.whl; do [ -e $$new/$$(basename $$old) ] || rm -f $$old; done; \
	mv -f $$new/*.whl $(WHEELHOUSE)/
	@[ $(WHEELHOUSE)/.filled -nt pyproject.toml ] || { \
	    rm -f $$(ls $(WHEELHOUSE)/*.whl | grep -v /tritongen-) && \
	    $(PIP) download --quiet $(WHEELS_FOR) --dest $(WHEELHOUSE) pip \
	        "tritongen[serve] @ file://$$(ls $(CURDIR)/$(WHEELHOUSE)/tritongen-*.whl)" && \
	    touch $(WHEELHOUSE)/.filled; }

docker-base: ## where nothing can be pulled: Debian's Docker and a base image made here (as root)
	@.ci/docker

docker-image: wheelhouse ## the CPU image, from docker/wheelhouse
	docker build --tag tritongen-cpu --file docker/cpu.Dockerfile docker

clean: ## remove what builds, tests and the demo left behind
	rm -f $(WHEELHOUSE)/*.whl $(WHEELHOUSE)/.filled
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/digits/out
	find tritongen tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and the environment
	rm -rf $(VENV)

# Made only when it is not there or was left half-made.
$(VENV)/.made:
	@set -e; \
	if $(BIN)/python -m ensurepip >/dev/null 2>&1; then :; \
	elif ! $(PIP) --version >/dev/null 2>&1; then \
	    python=$$(PYTHON='$(PYTHON)' .ci/pick-python); \
	    echo "Making the environment $(VENV) with $$python …"; \
	    "$$python" -m venv --clear $(VENV); \
	fi; \
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.made
	@echo "Installing tritongen with its embedded Triton (about 190 MB of downloads, once) …"
	@$(PIP) install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	@echo "Installing tritongen with its embedded Triton and the test tools (about 320 MB of downloads, once) …"
	@$(PIP) install --quiet --editable '.[demo,dev]'
	@touch $@ $(VENV)/.demo
