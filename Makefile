# The commands of this repository. `make help` lists them.
# Everything is installed into .venv, from the locks by hash; a second run installs nothing and needs no network.

PYTHON ?= python3
UP_OPTIONS ?= --demo
# More than the two cores it is meant for: these tests also wait. Faults are about time, and want a core each.
TEST_WORKERS ?= 4
FAULTS_WORKERS ?= 2
E2E_WORKERS ?= 2
PIP_INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST := .venv/bin/python -m pytest
UV_INSTALL := .venv/bin/uv pip install --quiet --require-hashes
COMPILE := .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11

E2E := .venv/e2e
JAVASCRIPT := tests/e2e/javascript

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help run test check lint format bench e2e faults lock clean

help: ## list the commands
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do printf 'make %-8s %s\n' "$$name" "$$text"; done

run: .venv/.installed ## run everything on this machine with a demo merchant and a fake provider
	.venv/bin/obol up $(UP_OPTIONS)

test: .venv/.installed-dev ## all quick tests
	$(PYTEST) -n $(TEST_WORKERS) --dist worksteal -m "not slow" --ignore=tests/e2e --ignore=tests/faults tests

check: lint ## format, lint, types, import rule, documents
	$(PYTEST) -q tests/unit/test_imports.py tests/unit/test_docs.py

lint: .venv/.installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: .venv/.installed-dev ## format the code and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/.installed-dev ## the cost of the gateway beside nginx and a bare proxy (90 s)
	.venv/bin/python -m loadtests.bench

e2e: .venv/.installed-e2e .venv/.installed-node ## vendors' clients in Python and JavaScript, and a browser (E2E_OPTIONS="-k anthropic" picks)
	$(E2E)/bin/python -m pytest -n $(E2E_WORKERS) --dist loadfile tests/e2e $(E2E_OPTIONS)

faults: .venv/.installed-dev ## tests that take minutes: kills, chaos, fuzz (FAULTS_OPTIONS="--seed 7" replays)
	$(PYTEST) -n $(FAULTS_WORKERS) --dist loadgroup -m slow --ignore=tests/e2e tests/faults tests $(FAULTS_OPTIONS)

lock: .venv/.installed-dev ## write all lock files (LOCK_OPTIONS=--upgrade takes the newest versions of the Python ones)
	$(COMPILE) pyproject.toml --group dev --output-file requirements-dev.txt $(LOCK_OPTIONS)
	$(COMPILE) pyproject.toml --output-file requirements.txt $(LOCK_OPTIONS)
	$(COMPILE) pyproject.toml --group e2e --constraints requirements-dev.txt --output-file requirements-e2e.txt $(LOCK_OPTIONS)
	cd $(JAVASCRIPT) && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

clean: ## remove what the commands made, but not .obol (the data of `make run`)
	rm -rf .venv $(JAVASCRIPT)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

# The package is not built: a .pth file puts the checkout on the path, and `obol` is two lines.
.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Obol needs Python 3.11 or newer as $(PYTHON); name another one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@.venv/bin/python -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("purelib"), "obol_checkout.pth"), "w", encoding="utf-8").write(os.getcwd() + "\n")'
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -P -m gateway "$$@"\n' > .venv/bin/obol
	@chmod +x .venv/bin/obol
	@touch $@

.venv/.installed: requirements.txt .venv/.python
	$(PIP_INSTALL) --require-hashes -r requirements.txt
	@touch $@

# By uv, in a tenth of the time of pip; by pip where uv finds no index, as it does not read pip's settings.
.venv/.installed-dev: requirements-dev.txt .venv/.python
	@sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.txt > .venv/uv.txt
	@$(PIP_INSTALL) --require-hashes -r .venv/uv.txt
	$(UV_INSTALL) --python .venv/bin/python -r requirements-dev.txt || $(PIP_INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@

# An environment of its own, because these clients bring as many packages as the rest together; the package itself is found as in .venv.
.venv/.installed-e2e: requirements-e2e.txt .venv/.installed-dev
	@.venv/bin/python -m venv --without-pip --clear $(E2E)
	@cp $$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/obol_checkout.pth \
	  $$($(E2E)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	@$(UV_INSTALL) --python $(E2E)/bin/python -r requirements-e2e.txt || \
	{ echo "make e2e: the clients of requirements-e2e.txt could not be installed; the first time needs the package index" >&2; exit 1; }
	@touch $@

# Without Node.js the tests of JavaScript clients are skipped, and say so.
.venv/.installed-node: $(JAVASCRIPT)/package-lock.json .venv/.python
	@if ! command -v npm >/dev/null; then echo "make e2e: there is no npm here, JavaScript clients are left out" >&2; exit 0; fi; \
	(cd $(JAVASCRIPT) && npm ci --no-audit --no-fund --loglevel=error --prefer-offline) || \
	{ echo "make e2e: the clients of $(JAVASCRIPT)/package-lock.json could not be installed; the first time needs the npm registry" >&2; exit 1; }; \
	touch $@
