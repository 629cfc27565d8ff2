# The commands of this project; `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/cfm_digits

.DEFAULT_GOAL := help
.PHONY: help setup ffcv demo test test-all test-ffcv bench bench-scale bench-evaluation bench-labels bench-loading faults fuzz check format clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(INSTALLED)  ## install everything into .venv

$(INSTALLED): pyproject.toml constraints.txt docker/install.sh
	@echo "Installing into $(VENV) (about 6 GB, some minutes) …"
	docker/install.sh $(VENV) dev
	@touch $@

ffcv: $(INSTALLED)  ## add FFCV, the fast loader of large image sets (Debian packages: as root, or it says which)
	docker/install.sh $(VENV) dev,ffcv

demo: $(INSTALLED)  ## distil the embedded digits with CFM and evaluate them (about 2 minutes, no download)
	$(BIN)/unidd fit --config configs/cfm_digits.yaml --overwrite true
	$(BIN)/unidd evaluate --config configs/eval_digits.yaml --distilled $(DEMO)/distilled.safetensors --overwrite true

test: $(INSTALLED)  ## run the tests
	$(BIN)/pytest

test-all: $(INSTALLED)  ## run the slow tests too
	$(BIN)/pytest -m "not gpu and not ffcv"

test-ffcv: ffcv  ## run the tests of the FFCV loader
	$(BIN)/pytest -m ffcv

bench: $(INSTALLED)  ## time a distillation step, its parts and how it scales; on a GPU too where there is one (minutes)
	$(BIN)/python benchmarks/step.py --compiled --tricks --output runs/bench/step.json
	$(BIN)/python benchmarks/arithmetic.py --output runs/bench/arithmetic.json
	$(BIN)/python benchmarks/crossover.py --output runs/bench/crossover.json
	$(BIN)/python benchmarks/scaling.py --output runs/bench/scaling.json
	$(BIN)/python benchmarks/gpu.py --output runs/bench/gpu.json

bench-scale: $(INSTALLED)  ## time two processes that share a chunk against one; what 8 and 64 GPUs would exchange (minutes)
	$(BIN)/python benchmarks/scale.py --output runs/bench/scale.json
	$(BIN)/python benchmarks/scale.py --project runs/bench/scale.json

bench-labels: $(INSTALLED)  ## compare stored with online soft labels on the embedded digits: bytes and accuracy
	$(BIN)/python benchmarks/soft_labels.py

bench-evaluation: $(INSTALLED)  ## time an epoch of a student against a plain DataLoader loop, and the networks alone
	$(BIN)/python benchmarks/evaluation.py

bench-loading: ffcv  ## time both loaders on a folder of photographs: make bench-loading IMAGES=PATH
	$(BIN)/python benchmarks/loading.py $(IMAGES)

faults: $(INSTALLED)  ## kill, stop and starve real runs, go on, compare bit for bit (all of it as root, with faketime)
	$(BIN)/python benchmarks/faults.py --work runs/faults --output docs/results/faults

fuzz: $(INSTALLED)  ## read 2,000 spoilt files of every kind that a stranger may hand over (some 10 minutes)
	$(BIN)/python tests/fuzzing/table.py 2000 docs/results/fuzz

check: $(INSTALLED)  ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
