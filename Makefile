# make help explains itself.

PYTHON ?= python3
MINUTES ?= 1
BIN := .venv/bin
GUIDE := tests/acceptance/guide
CLIENT := tests/acceptance/client
ASYNCAPI := tests/acceptance/asyncapi
MIGRATIONS := tests/acceptance/migrations
FANOUT := benchmarks/fanout
# uv where it is installed, which takes a tenth of pip's time; else Python's own venv and pip.
UV := $(shell command -v uv)
VENV := $(if $(UV),$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.13 --python-platform linux \
	--custom-compile-command 'make lock' $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo test torture mutants fuzz soak autobahn bench containers lock version release check docs prose format clean

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed  ## Set up .venv with the relay and everything to develop it

demo: .venv/.demo  ## Watch a living board arrive over WebSocket: no database, no Docker, no root
	@$(BIN)/relay demo

# Compiled tests are kept, whatever the environment asks for: each worker compiles them in three seconds.
test: export PYTHONDONTWRITEBYTECODE =
test: install $(GUIDE)/node_modules/.installed $(CLIENT)/node_modules/.installed $(ASYNCAPI)/node_modules/.installed $(MIGRATIONS)/node_modules/.installed  ## Run all tests: make test ARGS='-k truncate'
	$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

torture: install $(GUIDE)/node_modules/.installed  ## Prove it amid faults, until a client holds a wrong board: make torture MINUTES=60 SEED=7 ARGS=--cluster
	$(BIN)/python -m tests.torture --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: install $(GUIDE)/node_modules/.installed  ## See that the torture catches each of its broken relays and clients
	@for mutant in counted_once cancelled_in_order last_entry_wins entries_sent \
		late_committers tail_dropped ahead_is_live truncate_ignored horizon_ignored \
		sequence_unexpected interrupted_counts mark_too_late \
		js_batch_twice js_deletion_ignored js_parts_dropped js_parts_kept js_cursor_kept js_lane_kept; do \
		if $(BIN)/python -m tests.torture --minutes 5 --mutant $$mutant; then \
			echo "$$mutant was not caught"; exit 1; fi; done

fuzz: install  ## Fuzz all that strangers can send, guided by coverage: make fuzz MINUTES=10
	$(INSTALL) -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

soak: install  ## Let strangers and clients come and go, and watch the memory: make soak MINUTES=60
	$(BIN)/python -m tests.fuzz.soak --minutes $(MINUTES)

autobahn: install  ## Run Autobahn's cases against the WebSocket endpoint, all in five minutes: make autobahn ARGS='"5.*"'
	$(BIN)/python -m tests.conformance.autobahn $(ARGS)

bench: install $(FANOUT)/node_modules/.installed  ## Compare the fan-out with others', side by side: make bench ARGS='--only burst'
	$(BIN)/python -m benchmarks.fanout $(ARGS)

containers: install  ## Build the image twice over, and try it with Compose on this machine's Docker engine
	BUILD_TWICE=1 $(BIN)/python -m pytest -n 0 tests/acceptance/test_containers.py

# setuptools is for nkeys, which is published as source only.
lock: install  ## Pin the versions that the image is built of: make lock ARGS=--upgrade
	$(INSTALL) -e '.[lock]'
	$(LOCK) pyproject.toml --extra nats --output-file deploy/requirements.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "setuptools", sep="\n")' \
		| $(LOCK) - --output-file deploy/build.lock

version: install  ## Give every file that has a copy of the version a new one: make version NEW=0.2.0
	$(BIN)/bump-my-version replace --new-version $(NEW)

# The SBOM is of an environment that holds the package, what it needs, and nothing else: no pip.
SBOM := build/sbom/bin/python
release: install  ## Build wheel, sdist, npm package and SBOM into dist/, and try each in an empty environment
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	npm pack ./relay/client/js --pack-destination dist --silent
	$(PYTHON) -m venv --without-pip build/sbom
	$(if $(UV),$(UV) pip install --quiet --python $(SBOM),$(BIN)/python -m pip --python $(SBOM) install --quiet --disable-pip-version-check) "$$(echo dist/*.whl)[nats]"
	$(BIN)/cyclonedx-py environment --output-reproducible --mc-type application --pyproject pyproject.toml --output-file dist/sbom.cdx.json $(SBOM)
	RELEASE="$(CURDIR)/dist" $(BIN)/python -m pytest -n 0 tests/acceptance/test_release.py

check: install prose  ## Lint, check formats, types, the direction of imports, and the prose
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.reference --check

docs: install  ## Write the tables of the documents that the code defines
	$(BIN)/python -m tools.reference

FILES := git ls-files --cached --others --exclude-standard --
STYLED := $(FILES) . ':!:.prose'
prose: install  ## Check spelling, the words that we avoid, and plain English
	@$(FILES) . ':!:*.lock' ':!:*.svg' | xargs $(BIN)/codespell
	@$(STYLED) | xargs $(BIN)/codespell --dictionary .prose/words.txt --regex '[A-Za-z]+' --ignore-regex 'slots=True|__slots__|replication slot|slot_name'
	@! $(STYLED) | xargs grep --with-filename --line-number --binary-files=without-match --perl-regexp --file=.prose/phrases
	@$(FILES) '*.md' | xargs $(BIN)/proselint check --config .prose/proselint.json

format: install  ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove what was set up and made
	rm -rf .venv torture $(GUIDE)/node_modules $(CLIENT)/node_modules $(ASYNCAPI)/node_modules $(MIGRATIONS)/node_modules $(FANOUT)/node_modules $(FANOUT)/build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv/.installed: pyproject.toml
	$(VENV)
	$(INSTALL) -e '.[dev]'
	@touch .venv/.demo $@

# What the demo needs, a third of everything.
.venv/.demo: pyproject.toml
	$(VENV)
	$(INSTALL) -e '.[demo]'
	@touch $@

# The guide's Node clients, the compiler for the types of ours, AsyncAPI's own parser, a migration tool, and the
# benchmark's Node server. Where there is no npm, what needs them says so.
%/node_modules/.installed: %/package.json
	@if command -v npm >/dev/null; then npm install --prefix $* --no-audit --no-fund --no-package-lock --loglevel=error; fi
	@mkdir -p $(@D) && touch $@
