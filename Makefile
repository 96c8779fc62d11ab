# Two commands do everything on a fresh machine: `make demo` and `make test`. `make demo-peptide PEPTIDE=NL` samples a
# peptide of your choice. `make gpu`, where there is an NVIDIA GPU, runs the tests marked `cuda` and benchmarks/gpu.py
# in under nine minutes; it installs nothing: GPU_PYTHON, whose torch must know CUDA, is .venv's Python or else python3.
PYTHON ?= python3.11
VENV ?= .venv
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
PEPTIDE ?= NL
DIGITS = zero one two three four five six seven eight nine
STAMP = $(VENV)/.installed
GPU_PYTHON ?= $(or $(wildcard $(VENV)/bin/python),python3)
GPU_OUTPUT ?= runs/gpu.json
GPU_OPTIONS ?=
GPU_RUN = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON)

.PHONY: demo demo-peptide test test-slow gpu docs lint clean

demo: $(STAMP)
	$(VENV)/bin/python -m molecular sample --peptide Ace-A-Nme --num_samples 10000 --seed 0 --output runs/demo
	$(VENV)/bin/python -m video generate --model digits $(DIGITS:%=--prompt %) --num_clips 10 --out runs/demo/digits.png
	$(VENV)/bin/python -m video generate --prompt "a seven moving up and right, fast" --guidance 2 --out runs/demo/clip.gif

demo-peptide: $(STAMP)
	$(VENV)/bin/python -m molecular sample --peptide $(PEPTIDE) --sampler auto --num_draws 2000 --num_samples 250 \
	    --batch_size 250 --seed 0 --output runs/demo-$(PEPTIDE)

# Two processes of one thread each; files are not parted, for their tests share what they set up.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow

# The benchmarks run whether or not a test fails, and either's failure is that of the command.
gpu:
	@$(GPU_RUN) -c "import nflows, torch; assert torch.cuda.is_available(), 'this torch sees no CUDA GPU'" || \
	    { echo "make gpu needs a torch with CUDA, nflows and a GPU: name its Python by GPU_PYTHON=."; exit 1; }
	@mkdir -p $(dir $(GPU_OUTPUT))
	@failed=0; \
	timeout --signal=INT --kill-after=10 120 env $(GPU_RUN) -m pytest -m cuda -ra --durations=5 tests/*/test_cuda.py || failed=1; \
	$(GPU_RUN) benchmarks/gpu.py --output $(GPU_OUTPUT) $(GPU_OPTIONS) || failed=1; \
	exit $$failed

# Into build/site; needs no network once it is installed.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# torch on its own and first, by the exact version in the constraints: see the note there.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[molecular,video,app,dev]"
	touch $@

$(VENV)/.installed-docs: $(STAMP)
	$(PIP) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build/site runs/demo
