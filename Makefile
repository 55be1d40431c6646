# Set-up and the main jobs. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-faults lint train-toyworld clean

demo: .venv/installed  ## run the main study on the bundled model and say where the results are
	$(BIN)/latentsweep run studies/cat-to-dragon.yaml

test: .venv/installed-dev  ## all tests, in two processes of one thread each: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-faults: .venv/installed-dev  ## servers that are started, killed and come back; minutes, and skipped aloud where one is not there
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgresql]'
	$(BIN)/python -m pytest -m faults -rs

lint: .venv/installed-dev  ## formatter, linter, type checker, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

train-toyworld: .venv/installed  ## train the bundled model anew in build/toyworld; goes on where it was stopped
	$(BIN)/python -m workers.toyworld.train

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:  ## remove the environment; results under runs/ stay
	rm -rf .venv
