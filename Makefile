# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv from a lock.
PYTHON ?= python3
BIN := .venv/bin
# Targets whose packages are small; TARGETS=all adds those that bring gigabytes.
LIGHT := gguf onnx
TARGETS ?= $(LIGHT)
OUT ?= demo-out
MODEL ?= bundled:moe
JOBS := 2

.PHONY: demo test slow check format bench lock clean

demo: .venv/.demo  ## convert the bundled model to every light target, run each artifact, write the report
	@set -e; for target in $(if $(filter all,$(TARGETS)),$(LIGHT),$(TARGETS)); do \
	  $(BIN)/lfm-convert $(MODEL) --target $$target --quant all --out $(OUT)/$$target --overwrite --no-validate; \
	  made="$$made $(OUT)/$$target"; \
	done; \
	$(BIN)/lfm-convert validate $$made --reference $(MODEL) --html $(OUT)/report.html --json $(OUT)/report.json
	@echo "report: $(OUT)/report.html"

test: .venv/.dev  ## everything that runs in minutes
	$(BIN)/pytest -n $(JOBS) -m "not slow"

slow: .venv/.dev  ## what takes long: full-size shapes
	$(BIN)/pytest -m slow

check: .venv/.dev  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p lfm_convert
	$(BIN)/pytest -q -n $(JOBS) -m "not slow"

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev  ## speed and memory, against the peers, as ratios in one run
	$(BIN)/python benchmarks/convert_memory.py

# setuptools warns at length about every mapped folder of an editable install.
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check

# The environments. The demo needs no torch; the tests do, as the reference of the reference.
.venv/.demo: requirements/demo.lock pyproject.toml | .venv/bin/python
	$(PIP) -r requirements/demo.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.demo
	$(PIP) -r requirements/dev.lock
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

lock:  ## resolve the exact versions anew
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet "pip<26" pip-tools
	$(call compile,demo,--extra all)
	$(call compile,dev,--extra dev -c requirements/demo.lock)

define compile
	.venv-lock/bin/pip-compile --quiet --no-header --no-annotate --strip-extras --allow-unsafe \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  $(2) -o requirements/$(1).lock pyproject.toml requirements/build.in
	sed -i.tmp '/^lfm-convert/d; s/+cpu$$//' requirements/$(1).lock && rm requirements/$(1).lock.tmp
endef

clean:
	rm -rf .venv .venv-lock $(OUT)
