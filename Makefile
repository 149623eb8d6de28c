PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench bench-gpu demo docs figures harvest-gpu test test-long clean

demo: $(VENV)/.installed
	$(BIN)/imagenette-zoo run mbv2_imagenette mbv2_mish_imagenette -c demo --dataset synthette --epochs 5 --seeds 3 \
	    --one-look --in-process --experiment demo
	@echo
	@echo 'The demo trained two MobileNetV2s, with ReLU6 and with Mish, from random weights on ten classes of drawn shapes and'
	@echo 'textures, three seeds each. Open runs/demo/report/report.html. A second "make demo" finds all of it done.'
	@echo 'Next, on real images: docs/getting-started.md'

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not long" -n 2 --dist worksteal

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m long

# The site in build/site; a dead link or an unknown anchor is an error.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Pages, pictures and tables of README and docs, from the result files behind them.
figures: $(VENV)/.installed
	$(BIN)/python tools/figures.py

# As in: make bench DATA=DIR TIMM=CHECKOUT
DATA ?= $(IMAGENETTE_DIR)
TIMM ?= $(TIMM_CHECKOUT)
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --data-dir $(DATA) --timm-dir $(TIMM) --device cpu

BENCH_GPU = $(BIN)/python benchmarks/run.py --data-dir $(DATA) --device cuda --amp --workers 16
bench-gpu: $(VENV)/.installed
	$(BENCH_GPU) --only machine decode pipeline loop recorded fused --images 0 --steps 50 $(ARGS)
	$(BENCH_GPU) --only accuracy --recipe hparams/seresnet18d_90.yaml --target 90 --order ours --seeds 1 --first-seed 42 $(ARGS)
	$(BENCH_GPU) --only train validate --timm-dir $(TIMM) --rounds 1 --images 4800 $(ARGS)

# A GPU for a quarter of an hour, as in: make harvest-gpu DATA=DIR BUDGET=12m OUT=DIR; FROM=ARCHIVE goes on elsewhere.
BUDGET ?= 12m
OUT ?= runs
harvest-gpu: $(VENV)/.dev
	$(BIN)/python tools/harvest_gpu.py --data-dir $(DATA) --budget $(BUDGET) --output $(OUT) \
	    $(if $(FROM),--archive $(FROM)) $(if $(TIMM),--timm-dir $(TIMM)) $(ARGS)

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[report]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
