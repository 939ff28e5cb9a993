PYTHON ?= python
REFERENCE ?= ../shared/golden

.PHONY: check lint types imports test parity bundled

check: lint types imports test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

imports:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

test:
	$(PYTHON) -m pytest

# every checkpoint's backbone against the paper's values (a folder with fill.py and metaformer_logits.json) and timm
parity:
	$(PYTHON) tests/parity.py --reference $(REFERENCE)

# the bundled artifact from its checkpoint
bundled:
	$(PYTHON) weights/build.py
