# Each target does its own set-up: a machine needs Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types schema docs site bench clean

demo: $(READY)  ## plan, train, prune, distil, make smaller, run as int8 on digits, and report
	$(BIN)/python examples/demo/run_demo.py

test: $(READY)  ## every test, slow ones included
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy --strict distiller_ng

schema: $(READY)  ## write the editor schema again, after a class or argument changed
	$(BIN)/python -m distiller_ng.config.schema --write schedules/schedule.schema.json

docs: $(READY)  ## write the generated reference pages again, after a docstring or signature changed
	$(BIN)/python docs/generate.py

site: $(READY)  ## the documentation as a site in build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python benchmarks/step_overhead.py --quick
	$(BIN)/python benchmarks/distillation.py --quick
	$(BIN)/python benchmarks/second_order.py --quick
	$(BIN)/python benchmarks/ptq.py --quick

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[demo,plots,tensorboard,docs,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
