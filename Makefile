PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test clean

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

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
