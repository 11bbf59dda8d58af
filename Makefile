# make demo        the whole pipeline on trial data (6 to 15 minutes on two cores)
# make reproduce DATA=data/BACH ARGS="..."   the paper's run, its figures beside ours
# make test        the quick tests (7 to 12 minutes on two cores)
# make test-all    all tests, the slow ones too
# make lint        ruff, mypy, import-linter
# make docs        the documentation, into site/
# make figures     the figures of the documentation
# make campaign    10,000 damaged inputs and 200 kills: hours; ARGS="--cases 500 --kills 0" for some
# make bench       measurements behind the figures of the documentation, quick and rough

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA ?= data/BACH
ARGS ?=

.PHONY: demo reproduce test test-all lint docs figures campaign bench

demo: $(VENV)/installed
	$(RUN) -m bach.demo

# exec: without a shell between, a killed make ends the run too.
reproduce: $(VENV)/installed
	exec $(RUN) -m bach.reproduce --data-dir "$(DATA)" $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports

# The variable silences an advertisement of mkdocs-material.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo site/index.html

figures: $(VENV)/installed
	$(RUN) docs/figures.py

# What was done is kept in runs/campaign: the same command goes on.
campaign: $(VENV)/installed
	exec $(RUN) tests/campaign $(ARGS)

# Not peer.py, which needs the peer's environment.
bench: $(VENV)/installed
	@for file in $(filter-out benchmarks/peer.py,$(wildcard benchmarks/*.py)); do echo "$$file"; $(RUN) $$file --quick || exit 1; done

$(VENV)/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
