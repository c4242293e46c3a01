# make demo    install, train a small model on synthetic speech, evaluate it
# make test    the whole test suite with the doctests, in JOBS=2 processes
# make faults  the fault bench: a row for everything that a run must survive
# make lint    ruff check, format --check, mypy     make format   let ruff rewrite
# make clean   remove caches                       make distclean  .venv as well
# Another interpreter: make demo PYTHON=/path/to/python3.12

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install
DOCTESTED := data_prep modules recipes
JOBS ?= 2
# One thread: the layers are small, and two threads wait for each other on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

.PHONY: demo test faults lint format clean distclean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-run
	$(ONE_THREAD) $(PY) train.py hparams/demo.yaml

# A file's tests stay in one process, which makes its fixtures once. The files start in
# the order of tests/conftest.py, the longest first.
test: $(VENV)/.stamp-dev
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	    --doctest-modules tests $(DOCTESTED)

faults: $(VENV)/.stamp-dev
	$(ONE_THREAD) $(PY) -m benchmarks.faults

lint: $(VENV)/.stamp-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.stamp-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# A stamp appears only after its step succeeded, so an interrupted install is
# finished by the next call.
$(VENV)/.stamp-run: requirements.txt $(VENV)/.stamp-venv
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.txt $(VENV)/.stamp-run
	$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "make: no $(PYTHON) found; install Python 3.11 or newer, or name one:" \
	         "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer is needed, $(PYTHON) is" \
	         "$$($(PYTHON) --version 2>&1); name another one:" \
	         "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
