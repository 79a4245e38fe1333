# The words that people and CI use.  Each does the set-up it needs; a second call does not install again.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo quick test test-clusters test-runs test-rest check bench reproduce clean

demo: $(VENV)/installed
	@test -f demo/digits/dataset.json || $(BIN)/vitrail shards build digits demo/digits
	@$(BIN)/vitrail preview deit_digits_distilled --data demo/digits --output demo/views.png
	@$(LAUNCH) recipes/teacher_digits.py --data demo/digits --output demo/teacher
	@$(LAUNCH) recipes/deit_digits_distilled.py --data demo/digits --output demo/run \
		--distill.teacher local-dir:demo/teacher --distill.store demo/teacher_outputs
	@echo "Look at   demo/run/learnt.png   what it learnt"
	@echo "          demo/views.png        the images as the model sees them"
	@echo "          $(BIN)/tensorboard --logdir demo/run/tensorboard"

# no processes, no compilation, no whole recipes
quick: $(VENV)/installed
	$(BIN)/pytest -m "not dist and not slow"

# three lanes side by side on two cores: what waits for clusters much of its time shares a core with the quick ones.  Each
# keeps to its core: processes that share cores wait for each other's threads.
test: $(VENV)/installed
	@$(MAKE) --jobs 3 --no-print-directory test-clusters test-runs test-rest

ON = $(if $(shell command -v taskset),taskset --cpu-list $(1))
CLUSTERS := tests/slurm tests/launch/test_drill.py
RUNS := tests/pipeline/update tests/pipeline/teacher tests/recipes tests/shards
test-clusters: $(VENV)/installed
	$(call ON,1) $(BIN)/pytest --durations=10 $(CLUSTERS)
test-runs: $(VENV)/installed
	$(call ON,0) $(BIN)/pytest --durations=10 $(RUNS)
test-rest: $(VENV)/installed
	$(call ON,1) $(BIN)/pytest --durations=10 $(patsubst %,--ignore=%,$(CLUSTERS) $(RUNS))

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

# sources of its data: for `vitrail shards build`, and resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10
CIFAR10 ?= torchvision:CIFAR10
FLOWERS ?= flowers12.zip
RESNET20 ?= resnet20-12fca82f.th
reproduce: $(VENV)/installed
	$(BIN)/python tests/bench/reproduce.py --cifar10 $(CIFAR10) --flowers $(FLOWERS) --resnet20 $(RESNET20)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Vitrail needs Python 3.11 or newer; name one: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
