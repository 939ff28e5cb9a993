# Every target works in a virtual environment that make creates, or in one of yours: make lint PYTHON=python3
VENV ?= .venv
REFERENCE ?= ../shared/golden
PARALLEL := -n auto --dist worksteal

ifdef PYTHON
INSTALLED :=
else
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/dev.stamp
endif

.DEFAULT_GOAL := help
.PHONY: help check reformat lint dockerfile types imports docs test quick coverage parity fuzz locked bundled light

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/dev.stamp: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[dev]'
	touch $@

check: lint dockerfile types imports docs test ## everything that CI runs

reformat: $(INSTALLED) ## format the code and fix what ruff can fix
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint: $(INSTALLED) ## ruff: rules and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

dockerfile: $(INSTALLED) ## hadolint
	$(dir $(shell command -v $(PYTHON)))hadolint Dockerfile

types: $(INSTALLED) ## mypy, strict
	$(PYTHON) -m mypy

imports: $(INSTALLED) ## import-linter: the layers of the packages
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

docs: $(INSTALLED) ## write the generated pages and build the documentation; a dead link fails
	$(PYTHON) scripts/render_docs.py
	$(PYTHON) -m mkdocs build --strict

test: $(INSTALLED) ## all tests, on all cores
	$(PYTHON) -m pytest $(PARALLEL)

quick: $(INSTALLED) ## the tests that are not marked slow
	$(PYTHON) -m pytest $(PARALLEL) -m "not slow"

coverage: $(INSTALLED) ## all tests, with the share of lines and branches that they run
	$(PYTHON) -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered

parity: $(INSTALLED) ## every backbone against the paper's values (REFERENCE=FOLDER) and timm
	$(PYTHON) tests/parity.py --reference $(REFERENCE)

FUZZ_SECONDS ?= 600
fuzz: $(INSTALLED) ## fuzz what reads strangers' bytes, for FUZZ_SECONDS; what is found is kept in fuzz/found
	$(PYTHON) fuzz/run.py --seconds $(FUZZ_SECONDS)

locked: $(INSTALLED) ## requirements-ci.txt: what CI installs but torch and timm, newest versions, with hashes
	printf 'torch\ntimm\ntorchvision\n' | $(PYTHON) -m uv pip compile pyproject.toml --quiet --upgrade --universal \
		--python-version 3.11 --extra dev --extra fuzz --extra release --excludes /dev/stdin --generate-hashes \
		--custom-compile-command "make locked" -o requirements-ci.txt

bundled: $(INSTALLED) ## the bundled artifact from its checkpoint
	$(PYTHON) weights/build.py

light: $(INSTALLED) ## requirements-light.txt: everything but torch and timm, newest versions, with hashes
	printf 'torch\ntimm\n' | $(PYTHON) -m uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
		--excludes /dev/stdin --generate-hashes --custom-compile-command "make light" -o requirements-light.txt
