# Everything from a fresh clone: Python >= 3.11, a C compiler and a package index are enough.
#   make demo    set up .venv and stream text from the model that comes with the package
#   make test    set up .venv and run the tests          make lint    style and types
#   make bench   speed against transformers, drafts, memory, the door: run it alone
#   make ascend-emulated   the tests of Huawei's Ascend, through torch_npu on an emulated CANN (x86-64, gcc)
#   make ascend-hardware   the same on a machine with a card, and a report of them
#   make parity  every planted fault and right change on models that the gate's limits were not chosen on (10 minutes)
#   make soak    half an hour of a crowd at the door      make fuzz    10,000 requests of any kind
PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin
PROMPT ?= Once upon a time

.PHONY: demo test lint bench parity soak fuzz clean ascend-emulated ascend-traces ascend-hardware
.DEFAULT_GOAL := test

demo: .venv/.installed-run
	$(BIN)/tiefsee run "$(PROMPT)"

# One thread per worker: two test processes with two threads each fight over two cores.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 $(PYTEST_ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check tiefsee tests benchmarks
	$(BIN)/ruff format --check tiefsee tests benchmarks
	$(BIN)/mypy


# About 30 minutes and 25 GB of disk and memory; run it on a machine that does nothing else.
bench: .venv/.installed-dev
	$(BIN)/python -m pytest -q -s -m bench tests
	$(BIN)/python benchmarks/against_transformers.py
	$(BIN)/python benchmarks/packed_weights.py
	$(BIN)/python benchmarks/speculation.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/load_memory.py /tmp/tiefsee-bench/v2-lite-9-layers
	$(BIN)/python benchmarks/serve_process.py
	$(BIN)/python benchmarks/serve_http.py

# The table of docs/parity.md; `calibrate small 0 3` prints what its limits were chosen from.
parity: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.parity.matrix matrix wide 10 12

# The door for half an hour under a crowd, and 10,000 bodies of any kind.
soak: .venv/.installed-dev
	TIEFSEE_SOAK_S=1800 $(BIN)/python -m pytest -q -s tests/serve/test_soak.py

fuzz: .venv/.installed-dev
	TIEFSEE_FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest -q -s --timeout 3600 tests/serve/test_fuzz.py

# Ascend lives in an environment of its own: where torch_npu is installed and CANN is not, `import torch` fails.
ASCEND := .venv-ascend/bin/python
# Two workers share the CPU; each engine of the tests gets a small card.
ASCEND_PYTEST = -m pytest -q --timeout 600 -n 2 --dist loadfile $(PYTEST_ARGS)
EMULATED = OMP_NUM_THREADS=1 $(ASCEND) -m tests.fakecann --device-bytes 4000000000

ascend-emulated: .venv-ascend/.installed .venv/.installed-dev
	@echo "== the engine on a device that only Python knows"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -p tests.pure_npu --device npu tests/engine $(PYTEST_ARGS)
	@echo "== torch_npu on an emulated CANN, Ascend 910B3"
	$(EMULATED) --soc Ascend910B3 $(ASCEND_PYTEST) tests/ascend
	@echo "== Ascend 910C"
	$(EMULATED) --soc Ascend910_9391 $(ASCEND_PYTEST) tests/ascend/test_traces.py tests/ascend/test_engine.py -k "calls or fold or fp8 or fp4 or int8 or (v3 and bfloat16)"
	@echo "== Ascend 950: every operator, and what it has of its own"
	$(EMULATED) --soc Ascend950 $(ASCEND_PYTEST) tests/ascend/test_operators.py
	$(EMULATED) --soc Ascend950 $(ASCEND_PYTEST) tests/ascend/test_engine.py tests/ascend/test_parity_gate.py -k "950 or fp8 or codes or (bfloat16 and not chunks)"

# After a change that is meant to change what runs on the card: write the traces anew, and read the difference.
ascend-traces: .venv-ascend/.installed
	WRITE_TRACES=1 $(EMULATED) -m pytest -q tests/ascend/test_traces.py
	git diff --stat tests/ascend/traces

# On a machine with a card and CANN (its set_env.sh sourced): the same tests, and a report for an issue.
ascend-hardware: .venv-ascend/.installed
	$(ASCEND) tests/ascend/report.py $(PYTEST_ARGS)

clean:
	rm -rf .venv .venv-ascend build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "found $$($(PYTHON) --version), tiefsee needs Python >= 3.11; try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# The demo installs what a user needs; tests and lint add the development tools to the same .venv.
.venv/.installed-run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.installed-run

.venv-ascend/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ascend
	$(ASCEND) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ascend]' pytest pytest-timeout pytest-xdist hypothesis openai
	@touch $@
