# make demo       set up .venv, caption photos; draw a sample set, train on it, score it
# make test       the tests, in minutes                make test-long   those that take longer
# make app        a page in the browser to try a captioner on
# make bench      speed beside what else there is, twenty minutes
# make pictures   those of README.md and docs/         make lint        ruff, lint and format
# make clean      remove what these made

SHELL := /bin/bash
CHECK := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first Python that will do; a given one (make PYTHON=…) must do.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(CHECK)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEMO := demo
REQUIRED := requirements.txt requirements-caption.txt

.PHONY: demo app test test-long bench pictures lint clean

.venv/bin/python:
	@if ! $(or $(PYTHON),false) -c '$(CHECK)' 2>/dev/null; then \
		echo "This needs Python 3.11, 3.12 or 3.13 (TensorFlow has no build for others)." >&2; \
		echo "Install one and name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; fi
	$(PYTHON) -m venv .venv

# The stamps carry the requirements' own times: pip runs again only when these change.
.venv/installed: $(REQUIRED) | .venv/bin/python
	@echo "Installing packages into .venv, once: a minute or more."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-app: requirements-app.txt $(REQUIRED) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-app.txt
	@touch $@ .venv/installed

.venv/installed-dev: requirements-dev.txt requirements-export.txt requirements-app.txt $(REQUIRED) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/installed-app .venv/installed

demo: .venv/installed
	@echo "Photos, by the captioner that is included (Flickr8k: people and dogs outdoors):"
	@$(BIN)/python generate_caption.py --image_path data/examples \
		--model_path models/flickr8k_captioner.onnx --save_figure $(DEMO)/examples.png
	@echo
	@echo "Training from scratch, on scenes drawn for it:"
	$(BIN)/python data/sample.py --output_dir $(DEMO)/dataset
	$(BIN)/python preprocess.py --dataset_dir $(DEMO)/dataset --output_dir $(DEMO)/data \
		--encoder efficientnet_lite0
	$(BIN)/python train.py --data_dir $(DEMO)/data --model_path $(DEMO)/models/caption_model.h5 \
		--epochs 30 --overwrite
	@echo
	$(BIN)/python evaluate.py --data_dir $(DEMO)/data --images_dir $(DEMO)/dataset/Images \
		--model_path $(DEMO)/models/caption_model.h5 --output_dir $(DEMO)/results --split test
	@echo "Scenes are easier than photos: these scores compare with nothing but each other."

app: .venv/installed-app
	$(BIN)/python app.py $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: .venv/installed-dev
	$(BIN)/python -m pytest -m long $(ARGS)

# The CPU build of PyTorch, in an environment of its own: only a contestant here.
.venv/torch/installed: | .venv/bin/python
	$(BIN)/python -m venv .venv/torch
	.venv/torch/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
		--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 "numpy>=2.1,<3" \
		pillow joblib
	@touch $@

bench: .venv/installed .venv/torch/installed
	$(BIN)/python benchmarks/speed.py --torch_python .venv/torch/bin/python

# The pictures that README.md and docs/ show; needs Chromium and ChromeDriver.
SHOWN := cold_water donna grand_canyon_2 camera spiff skagen
pictures: .venv/installed-dev
	$(BIN)/python generate_caption.py --image_path $(SHOWN:%=data/examples/%.jpg) \
		--model_path models/flickr8k_captioner.onnx --save_figure docs/captions.png
	rm -f docs/app.png
	PICTURE=docs/app.png $(BIN)/python -m pytest tests/test_browser.py -k nobody_else_is_asked
	test -s docs/app.png

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv $(DEMO) benchmarks/scratch
