# A thin door to `python -m ldctlib`. Extra arguments: make course ARGS="--only 01,07 -p seed=3"
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
RUN    := $(VENV)/bin/python -m ldctlib
STAMP  := $(VENV)/.installed

.PHONY: help course test lab train bench notebooks install

help:
	@echo "make course     run the notebooks in order and write runs/workshop/index.html"
	@echo "make test       unit tests, then every notebook under nbval"
	@echo "make lab        JupyterLab, at the map of the course"
	@echo "make train      the recipes behind the shipped checkpoints"
	@echo "make bench      speed"
	@echo "make notebooks  re-execute the notebooks in place"

course test lab train bench notebooks: $(STAMP)
	@$(RUN) $@ $(ARGS)

install: $(STAMP)

$(STAMP): bootstrap.py pyproject.toml constraints.txt
	@$(PYTHON) bootstrap.py $(VENV)
