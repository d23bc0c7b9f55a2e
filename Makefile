# Needs make and a Python >= 3.11, nothing else: every target makes and reuses its own virtual environment.
# Another interpreter: make PYTHON=/path/to/python3.12 …

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSIONS := 3.13 3.12 3.11 3.14
PYTEST_ARGS ?=

# A shell function: the path of a working interpreter of exactly version $1, or nothing. A pyenv shim may be on PATH and
# yet refuse to run, so each candidate must answer.
define find_python
find_python() { \
  local candidate; \
  for candidate in "python$$1" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/"$$1".*/bin/python3 python3; do \
    "$$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$$1'); " >/dev/null 2>&1 \
      && { "$$candidate" -c 'import sys; print(sys.executable)'; return 0; }; \
  done; return 1; }
endef

# Makes the environment $1 from the interpreter $2 with the dependency group $3.
define make_venv
if command -v uv >/dev/null 2>&1; then \
  uv venv --quiet --allow-existing --python "$(2)" "$(1)"; \
  uv pip install --quiet --python "$(1)/bin/python" --group $(3) --editable .; \
else \
  "$(1)/bin/python" -c "" 2>/dev/null || "$(2)" -m venv --clear "$(1)"; \
  "$(1)/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'; \
  "$(1)/bin/python" -m pip install --quiet --disable-pip-version-check --group $(3) --editable .; \
fi
endef

BIN := .venv/bin

.venv/.stamp: pyproject.toml
	@$(find_python); python="$(PYTHON)"; \
	if [ -z "$$python" ]; then for version in $(VERSIONS); do python=$$(find_python $$version) && break; done; fi; \
	[ -n "$$python" ] || { echo "setpoint needs Python 3.11 or newer; name one with make PYTHON=…" >&2; exit 2; }; \
	echo "installing into .venv with $$python"; \
	$(call make_venv,.venv,$$python,dev)
	@touch $@

.venv-%/.stamp: pyproject.toml
	@$(find_python); python=$$(find_python $*); echo "installing into .venv-$* with $$python"; \
	$(call make_venv,.venv-$*,$$python,test)
	@touch $@

.PHONY: venv
venv: .venv/.stamp ## make or refresh .venv

.PHONY: demo
demo: .venv/.stamp ## a whole fleet on this machine: Valkey, scheduler, workers, a sample application converging
	@$(BIN)/setpoint demo

.PHONY: demo-check
demo-check: .venv/.stamp ## the same, but ends by itself: fails unless the sample fleet converges
	@$(BIN)/setpoint demo --check

.PHONY: test
test: .venv/.stamp ## the whole test suite on the primary Python
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: test-all
test-all: .venv/.stamp ## `make test`, then the quick tests on every other supported Python this machine has
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-others

.PHONY: test-others
test-others: .venv/.stamp ## the quick tests on every supported Python but the primary one
	@$(find_python); primary=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in $(VERSIONS); do \
	  if [ "$$version" = "$$primary" ] || ! find_python $$version >/dev/null; then continue; fi; \
	  $(MAKE) --no-print-directory .venv-$$version/.stamp; \
	  echo "the quick tests on Python $$version"; \
	  .venv-$$version/bin/python -m pytest -m "not slow" $(PYTEST_ARGS); \
	done

.PHONY: lint
lint: .venv/.stamp ## style, format, types (mypy and pyright, strict) and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

.PHONY: format
format: .venv/.stamp ## put the code into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: bench
bench: .venv/.stamp ## measure against the peers
	@$(BIN)/python -m tests.bench
	@$(BIN)/python -m tests.bench.mixed
	@$(BIN)/python -m tests.bench.runner

.PHONY: soak
soak: .venv/.stamp ## kill workers, schedulers and Valkey at random for 10 minutes (SOAK_SECONDS, SOAK_SEED); nothing may be lost
	@$(BIN)/python -m tests.crash.soak

.PHONY: mutants
mutants: .venv/.stamp ## break the engine's scripts on purpose; the model test must notice every time
	@$(BIN)/python -m tests.model.mutants

.PHONY: clean
clean: ## remove the environments, caches and build output
	rm -rf .venv .venv-3.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
