# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first where it is missing
# or where the lock file changed; they need Python 3.11 and a package index, nothing else.

PYTHON ?=
VENV ?= .venv
# Where test-newest and compat keep their environments; not in the repository.
COMPAT ?= .compat
MEDIUM ?= video
ARGS ?=
# `gpu` and `weights` need what most machines lack; `slow` is for `make test-all`.
QUICK := not gpu and not weights and not slow
# Processes of `make test`. What shares an engine stays in one of them (tests/helpers/processes.py), and engines
# come first in each: tests of training end the process groups that an engine needs.
PROCESSES ?= 2
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --no-loadscope-reorder
BIN = $(VENV)/bin

export PYTHON COMPAT

.PHONY: help venv judges demo test test-all test-newest compat digest gpu kernels lint format bench wheel clean fuzz

help:
	@echo "make demo      start the engine and answer real requests   (ARGS=... is passed on)"
	@echo "make test      the tests of every change                   (ARGS=... goes to pytest)"
	@echo "make test-all  those and the slow ones"
	@echo "make lint      ruff, mypy, spelling, layer map: what CI runs"
	@echo "make format    let ruff rewrite the files, and renew the tables of README and docs"
	@echo "make fuzz      damaged media against a server              (MEDIUM=image, audio or video)"
	@echo "make bench     the benchmarks, one after the other"
	@echo "make wheel     dist/vllm_dynin-….whl, to install elsewhere (docs/install.md)"
	@echo "make gpu       the tests that need a GPU, in at most eight minutes, with a log"
	@echo "make kernels   compile the kernels for sm_80, sm_90 and sm_100 without a GPU; sizes into docs/kernels.md"
	@echo "make test-newest  unit tests with the newest of every dependency, in an environment of their own"
	@echo "make compat    the engine's tests on the newest vLLM, without a GPU (9 GB; PARTS=... for some)"
	@echo "make digest    record the signatures that both vLLMs have of what this package touches"
	@echo "make venv      only the environment, in $(VENV)"
	@echo "make judges    the judges of quality figures into it (requirements/eval.lock)"
	@echo "make clean     remove caches and build output (the environment stays)"

venv:
	@bash packaging/make_venv.sh $(VENV)

judges: venv
	@bash packaging/install_judges.sh $(VENV)

demo: venv
	@$(BIN)/vllm-dynin demo $(ARGS)

test: venv
	$(PYTEST) -m "$(QUICK)" $(ARGS)

test-all: venv
	$(PYTEST) -m "not gpu and not weights" $(ARGS)

test-newest:
	@bash packaging/compat/newest.sh $(ARGS)

compat:
	@bash packaging/compat/compat.sh

digest: venv
	@bash packaging/compat/rig.sh
	$(BIN)/python packaging/compat/signatures.py renew $$($(BIN)/python -c 'import vllm, pathlib; print(pathlib.Path(vllm.__file__).parents[1])') $(COMPAT)/vllm33/site

gpu:
	@bash packaging/gpu_checks.sh

kernels: venv
	$(BIN)/python packaging/kernels/compile.py $(ARGS)

fuzz: venv
	PYTHONPATH=$(CURDIR):tests $(BIN)/python -m helpers.fuzz $(MEDIUM) $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/python packaging/layer_map.py --check
	$(BIN)/python packaging/options_table.py --check
	$(BIN)/python packaging/fields_table.py --check

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python packaging/layer_map.py
	$(BIN)/python packaging/options_table.py
	$(BIN)/python packaging/fields_table.py

bench: venv
	@set -e; for script in benchmarks/bench_*.py; do \
	    echo "== $$script"; $(BIN)/python $$script $(ARGS); \
	done

# With the environment where there is one, else with any Python that has pip: a CUDA machine has no use for it.
wheel:
	@bash packaging/make_wheel.sh $(or $(wildcard $(BIN)/python),$(PYTHON),python3) dist

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vllm_dynin tests benchmarks packaging -name __pycache__ -type d -exec rm -rf {} +
