# The stable commands. Each sets up what it needs: `make demo` works right after `git clone`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

.PHONY: help demo test test-ui test-scale chaos check bench screenshots constraints clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "Options of make demo: EVENTS=50 RATE=2 SEED=1 IMAGES=folder TRAINING=1 PORT=3000"
	@echo "               FAULTS='--pedestal-shift 8 --fault-from 100' (cygno-assets demo --help)"

demo: $(READY) ## run everything against a simulated DAQ; EVENTS=50 ends by itself
	@$(BIN)/cygno-assets demo $(if $(EVENTS),--events $(EVENTS)) $(if $(RATE),--rate $(RATE)) \
		$(if $(SEED),--seed $(SEED)) $(if $(IMAGES),--images $(IMAGES)) \
		$(if $(filter-out 0,$(TRAINING)),--training) $(if $(PORT),--port $(PORT)) $(FAULTS)

test: $(READY_DEV) ## the tests
	$(BIN)/python -m pytest --ignore cygno_assets_tests/ui --ignore cygno_assets_tests/scale

test-ui: $(READY_DEV) ## the tests in a browser; needs Debian's package chromium
	@command -v chromium >/dev/null || { echo "chromium is missing: sudo apt-get install chromium"; exit 1; }
	$(BIN)/python -m pytest cygno_assets_tests/ui

test-scale: $(READY_DEV) ## the tests beyond one machine; needs Debian's postgresql and rabbitmq-server
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ echo "Postgres is missing: sudo apt-get install postgresql"; exit 1; }
	@test -x /usr/lib/rabbitmq/bin/rabbitmq-server || \
		{ echo "RabbitMQ is missing: sudo apt-get install rabbitmq-server"; exit 1; }
	$(BIN)/python -m pytest cygno_assets_tests/scale

# Its full disks are mounts that are seen by nobody else, and gone when it ends.
UNSHARE := unshare --mount $(if $(filter-out 0,$(shell id -u)),--map-root-user)
chaos: $(READY_DEV) ## break the running system on purpose, and count; SHORT=1 for what tells most
	@$(UNSHARE) $(BIN)/python -m cygno_assets_tests.chaos $(if $(SHORT),--short)

screenshots: $(READY_DEV) ## take the README's screenshots anew; needs chromium
	@command -v chromium >/dev/null || { echo "chromium is missing: sudo apt-get install chromium"; exit 1; }
	SCREENSHOTS=docs/images $(BIN)/python -m pytest cygno_assets_tests/ui

check: $(READY_DEV) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY_DEV) ## the benchmarks, each beside its peer; about half an hour, with nothing else running
	@for benchmark in live_throughput live_latency live_first history_cost training_histogram training_formats training_ranges live_vs_training recorders postgres scale; do \
		echo "== $$benchmark"; $(BIN)/python -m benchmarks.$$benchmark || exit; echo; \
	done

constraints: ## pin the newest versions that fit pyproject.toml
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet '.[dev]'
	{ sed -n '/^#/p' constraints.txt; build/constraints/bin/pip freeze --exclude cygno-assets; } \
		> build/constraints.txt && mv build/constraints.txt constraints.txt

clean: ## delete the virtual environment and all state
	rm -rf $(VENV) .cygno build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is missing: sudo apt-get install python3 (or PYTHON=/path/to/python3.11 make …)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv is missing: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(READY): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, about half a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(READY_DEV): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, about a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(READY)
