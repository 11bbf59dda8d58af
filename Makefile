# make demo        the whole pipeline on trial data (10 to 15 minutes on two cores)
# make reproduce DATA=data/BACH ARGS="..."   the paper's run, its figures beside ours
# make test        all tests
# make lint        ruff
# make bench       measurements behind the README's figures

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA ?= data/BACH
ARGS ?=

.PHONY: demo reproduce test lint bench

demo: $(VENV)/installed
	$(RUN) -m bach.demo

# exec: without a shell between, a killed make ends the run too.
reproduce: $(VENV)/installed
	exec $(RUN) -m bach.reproduce --data-dir "$(DATA)" $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Not peer.py, which needs the peer's environment.
bench: $(VENV)/installed
	@for file in $(filter-out benchmarks/peer.py,$(wildcard benchmarks/*.py)); do echo "$$file"; $(RUN) $$file --quick || exit 1; done

$(VENV)/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
