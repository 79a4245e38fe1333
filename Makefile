# The words that people and CI use.  Each does the set-up it needs; a second call does not install again.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo board quick test test-runs test-rest gpu check bench reproduce clean

demo: $(VENV)/installed
	@test -f demo/digits/dataset.json || $(BIN)/vitrail shards build digits demo/digits
	@$(BIN)/vitrail preview deit_digits_distilled --data demo/digits --output demo/views.png
	@$(LAUNCH) recipes/teacher_digits.py --data demo/digits --output demo/teacher
	@$(LAUNCH) recipes/deit_digits_distilled.py --data demo/digits --output demo/run \
		--distill.teacher local-dir:demo/teacher --distill.store demo/teacher_outputs
	@echo "Look at   demo/run/learnt.png   what it learnt"
	@echo "          demo/views.png        the images as the model sees them"
	@$(BIN)/vitrail report demo/run --output demo/report.html
	@echo "          demo/report.html      all about the run, on one page"
	@echo "          make board LOGDIR=demo  its curves"

# curves and pictures of all runs in a folder, at http://localhost:6006
LOGDIR ?= runs
board: $(VENV)/installed
	$(BIN)/tensorboard --logdir $(LOGDIR)

# no processes, no compilation, no whole recipes
quick: $(VENV)/installed
	$(BIN)/pytest -m "not dist and not slow"

# two lanes side by side, each on a core of its own: processes that share cores wait for each other's threads
test: $(VENV)/installed
	@$(MAKE) --jobs 2 --no-print-directory test-runs test-rest

CORE = $(shell $(PYTHON) -c 'import os; cores = sorted(os.sched_getaffinity(0)); print(cores[$(1) % len(cores)])')
ON = $(if $(shell command -v taskset),taskset --cpu-list $(call CORE,$(1)))
RUNS := tests/launch tests/pipeline/session tests/pipeline/teacher tests/pipeline/update tests/recipes tests/shards
test-runs: $(VENV)/installed
	$(call ON,0) $(BIN)/pytest --durations=10 $(RUNS)
test-rest: $(VENV)/installed
	$(call ON,1) $(BIN)/pytest --durations=10 $(RUNS:%=--ignore=%)

# on one card, in at most ten minutes; writes gpu.md. `make test` has these tests too, and skips them without a card
gpu: $(VENV)/installed
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu: torch sees no CUDA device here; docs/gpu.md says what it needs")'
	$(BIN)/pytest --durations=10 -rs tests/gpu
	@echo "The page is gpu.md"

check: $(VENV)/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/vitrail bench loader deit_small
	$(BIN)/vitrail bench step deit_tiny
	$(BIN)/vitrail bench recipe deit_tiny
	@for bench in tests/bench/bench_*.py; do $(BIN)/python $$bench; done

# sources of its data, for `vitrail shards build`
CIFAR10 ?= torchvision:CIFAR10
FLOWERS ?= flowers12.zip
reproduce: $(VENV)/installed
	$(BIN)/python tests/bench/reproduce.py --cifar10 $(CIFAR10) --flowers $(FLOWERS)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Vitrail needs Python 3.11 or newer; name one: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
