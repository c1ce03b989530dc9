# Every target works alone on a fresh machine with Python >= 3.10, make and a C library.

PYTHON ?= python3
RANKS ?= 8
OUT ?= bench
WORKERS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# More ranks than cores are fine for a first run, waiting ranks give their core away, and containers
# often run as root: what a user would otherwise have to find out from mpirun's messages. Open MPI's
# ofi transport, which ranks of one machine have no use for, sleeps a second at every start.
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
export OMPI_MCA_mpi_yield_when_idle ?= 1
export OMPI_MCA_btl ?= ^ofi
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1

.PHONY: help venv run run-elastic test test-faults lint bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/'

venv: $(VENV)/.complete  ## install pinned versions and an MPI runtime into .venv

# Compiled as pip would do it, but on all cores and without the packages' own tests. What cannot be
# compiled is in the syntax of a later Python, and not needed.
$(VENV)/.complete: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,mpi]'
	PYTHONWARNINGS=ignore $(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	touch $@

run: venv  ## train on the embedded digits with 8 ranks (RANKS=N, ARGS='--epochs 100')
	PATH="$(CURDIR)/$(BIN):$$PATH" mpirun -n $(RANKS) python -m apts_mpi $(ARGS)

run-elastic: export PLANTED = [{"action": "kill", "place": "after an iteration", "rank": 1, "number": 3}]
run-elastic: venv  ## the same, and rank 1 is killed after three iterations: the others go on
	PATH="$(CURDIR)/$(BIN):$$PATH" mpirun --with-ft ulfm -n $(RANKS) python -m tests.faults.elastic_victim --elastic $(ARGS)

test: venv  ## all tests, 5 to 7 minutes on 2 cores
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-faults: venv  ## faults at random places of runs and damaged files, at length: an hour or two on 2 cores
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.faults.fuzz --inputs 10000
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.faults.inject --injections 230
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.faults.inject --elastic --injections 300
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest tests/faults tests/slurm tests/comm/test_watch.py tests/training/test_resume.py

lint: venv  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# 1, 2, 4, ... and as many ranks as there are cores.
BENCH_RANKS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); i=1; \
	while [ $$i -lt $$n ]; do printf '%d,' $$i; i=$$((2 * i)); done; echo $$n)

bench: venv  ## scaling, messages, cost model and their report in OUT=bench, 15 minutes on 2 cores
	-PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks strong --ranks $(BENCH_RANKS) --repetitions 3 --out $(OUT)
	-PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks weak --ranks $(BENCH_RANKS) --repetitions 3 --out $(OUT)
	-PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks micro --out $(OUT)
	-PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks project --out $(OUT)
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks report --out $(OUT)

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
