PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench bench-gpu demo test clean

demo: $(VENV)/.installed
	$(BIN)/python train.py -c demo --dataset synthette --experiment demo --overwrite
	$(BIN)/python validate.py --model runs/demo/last --dataset synthette --shift-consistency --results-file runs/demo/validation.json
	@echo
	@echo 'The demo trained mbv2_mish_imagenette from random weights on ten classes of drawn shapes and textures.'
	@echo 'Above: its accuracy by class, what it takes for what, and how often it keeps its answer when the image shifts.'
	@echo 'All of it is in runs/demo. Next, on real images: see "Train on Imagenette" in README.md'

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

# As in: make bench DATA=DIR TIMM=CHECKOUT
DATA ?= $(IMAGENETTE_DIR)
TIMM ?= $(TIMM_CHECKOUT)
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --data-dir $(DATA) --timm-dir $(TIMM) --device cpu

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --data-dir $(DATA) --timm-dir $(TIMM) --device cuda --amp --images 0 --steps 50 \
	    --batch-size 256 --workers 16 $(ARGS)

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
