# Everything needs only git, make and Python 3.11 or newer; the first target that runs sets up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
VERSIONS := 3.11 3.12 3.13
RUN := runs/demo
GPU := runs/gpu
SAMPLE := shards/sample

.PHONY: help demo test matrix soak gpu lint bench adaptation data-size methods ablation clean
help:
	@echo "make demo   train on the sample shards, evaluate, and write $(RUN)/report.html"
	@echo "make test   lint, types and tests"
	@echo "make matrix  make test on each of Python $(VERSIONS) that uv finds, each in a virtual environment of its own"
	@echo "make soak   tests that take many minutes: kills, large folders, fifty epochs"
	@echo "make gpu    what needs a CUDA GPU: its tests, and rates of loading and training on it, into $(GPU)"
	@echo "make lint   ruff and mypy alone"
	@echo "make bench  what limits this machine, into benchmarks/results/"
	@echo "make adaptation  hours: what adaptation closes of known gaps, three seeds each, into benchmarks/results/"
	@echo "make data-size  an hour: errors after training on 100 to 3,000 rooms, three seeds each, into benchmarks/results/"
	@echo "make methods  half an hour: every system of the paper's main table on the sample photos, into runs/methods"
	@echo "make ablation  half an hour: the nine rows of the paper's ablation on the sample shards, into runs/ablation"
	@echo "make clean  remove the virtual environment and the demo's run"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	rm -rf $(RUN)
	$(BIN)/fastssl train --preset tiny --synthetic $(SAMPLE)/render_train --real $(SAMPLE)/real_train --out $(RUN)
	$(BIN)/fastssl eval tasks $(RUN) --synthetic $(SAMPLE)/render_val >/dev/null
	$(BIN)/fastssl eval domain $(RUN) --synthetic $(SAMPLE)/render_val --real $(SAMPLE)/real_val >/dev/null
	$(BIN)/fastssl eval neighbours $(RUN) --real $(SAMPLE)/retrieval >/dev/null
	$(BIN)/fastssl eval matching $(RUN) --real $(SAMPLE)/real_val >/dev/null
	$(BIN)/fastssl eval knn $(RUN) --train $(SAMPLE)/retrieval --test $(SAMPLE)/real_val >/dev/null
	$(BIN)/fastssl eval linear $(RUN) --train $(SAMPLE)/retrieval --test $(SAMPLE)/real_val --batch-size 32 >/dev/null
	$(BIN)/fastssl report $(RUN)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/limits.py

adaptation: $(VENV)/.installed
	$(BIN)/python benchmarks/domain_shift.py

data-size: $(VENV)/.installed
	$(BIN)/python benchmarks/data_size.py

methods: $(VENV)/.installed
	$(BIN)/fastssl ablate tools/recipes/methods_sample.yaml --out runs/methods --jobs 2

ablation: $(VENV)/.installed
	$(BIN)/fastssl ablate tools/recipes/ablation_sample.yaml --out runs/ablation --jobs 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests at a time, each with one core.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

matrix: $(VENV)/.installed
	@for version in $(VERSIONS); do \
		if python=$$($(UV) python find --system $$version 2>/dev/null); then \
			$(MAKE) test PYTHON=$$python VENV=.venv-$$version || exit 1; \
		else echo "Python $$version is not found, and left out"; fi; \
	done

soak: $(VENV)/.installed
	$(BIN)/python -m pytest -m soak -s

# A lent machine may have the packages and no index to install from.
gpu:
	$(if $(wildcard $(VENV)/.installed),$(BIN)/python,$(PYTHON)) tools/gpu_check.py --out $(GPU)

clean:
	rm -rf .venv $(VERSIONS:%=.venv-%) $(RUN)
