# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv from a lock.
PYTHON ?= python3
BIN := .venv/bin
# Targets whose packages are small; TARGETS=all adds those that bring gigabytes.
LIGHT := gguf onnx mlx
HEAVY := executorch
TARGETS ?= $(LIGHT)
CHOSEN := $(if $(filter all,$(TARGETS)),$(LIGHT) $(HEAVY),$(TARGETS))
# What the demo shows of each; `lfm-convert targets` lists every quant.
QUANTS.gguf := F32,F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0
QUANTS.onnx := fp32,fp16,q8,q4,q4f16
QUANTS.mlx := bf16,8bit,4bit
QUANTS.executorch := fp32,8da4w
OUT ?= demo-out
MODEL ?= bundled:moe
JOBS := 2
# What `make clients` installs, each in a folder of its own: runtimes that cannot share one environment.
CLIENTS := ort-1.30.0 ort-1.24.3 genai-0.18.0 tfjs-4.3.1 tfjs-4.0.1 browser

.PHONY: demo test slow full clients check format bench screenshots lock clean

# convert the bundled model to every light target, run each artifact, write the report
demo: $(if $(filter $(HEAVY),$(CHOSEN)),.venv/.dev,.venv/.demo)
	$(foreach target,$(CHOSEN),$(call convert,$(target)))
	$(BIN)/lfm-convert validate $(CHOSEN:%=$(OUT)/%) --reference $(MODEL) --html $(OUT)/report.html --json $(OUT)/report.json
	@echo "report: $(OUT)/report.html"

define convert
	$(BIN)/lfm-convert $(MODEL) --target $(1) --quant $(QUANTS.$(1)) --out $(OUT)/$(1) --overwrite --no-validate

endef

test: .venv/.dev  ## everything that runs in minutes
	$(BIN)/pytest -n $(JOBS) -m "not slow"

slow: .venv/.dev  ## what takes long: full-size shapes
	$(BIN)/pytest -m slow

full: .venv/.dev  ## LFM2-8B-A1B's shape, generated, through the ExecuTorch export: memory, bytes, tokens; 27 GB of disk
	$(BIN)/python benchmarks/executorch_full.py --scratch $(or $(SCRATCH),.)

clients: .venv/.dev $(CLIENTS:%=.clients/%/.done)  ## ONNX folders in every client; BROWSER=--browser adds Chromium
	$(BIN)/python tests/clients/table.py $(BROWSER)

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

.clients/ort-%/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet onnxruntime==$* transformers==5.23.0
	@touch $@

# onnx, onnx-ir, torch and transformers are for its builder, the peer of the benchmarks.
.clients/genai-%/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet onnxruntime-genai==$* onnxruntime==1.31.1 onnx onnx-ir torch==2.13.0 transformers==5.23.0
	@touch $@

# Without its install script onnxruntime-node uses the CPU library that its package brings.
.clients/tfjs-%/.done:
	npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund @huggingface/transformers@$*
	@touch $@

# Chromium itself comes from the system: apt-get install --no-install-recommends chromium-headless-shell
.clients/browser/.done:
	npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund puppeteer-core@24.43.1
	@touch $@

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

screenshots:  ## pictures of $(OUT)/report.html for docs/, by Chromium's headless shell
	$(BIN)/python tests/support/screenshots.py $(OUT)/report.html docs/images

clean:
	rm -rf .venv .venv-lock $(OUT)
