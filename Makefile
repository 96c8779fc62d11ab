# Two commands do everything on a fresh machine: `make demo` and `make test`. `make demo-peptide PEPTIDE=NL` samples a
# dipeptide of your choice.
PYTHON ?= python3.11
VENV ?= .venv
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
PEPTIDE ?= NL
STAMP = $(VENV)/.installed

.PHONY: demo demo-peptide test test-slow lint clean

demo: $(STAMP)
	$(VENV)/bin/python -m molecular sample --peptide Ace-A-Nme --num_samples 10000 --seed 0 --output runs/demo

demo-peptide: $(STAMP)
	$(VENV)/bin/python -m molecular sample --peptide $(PEPTIDE) --num_samples 10000 --seed 0 --output runs/demo-$(PEPTIDE)

test: $(STAMP)
	$(VENV)/bin/python -m pytest

test-slow: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# torch on its own and first, by the exact version in the constraints: see the note there.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[molecular,video,dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
