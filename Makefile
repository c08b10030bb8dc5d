# Four verbs: make demo, make test, make check, make bench. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
UV := uv==0.13.9
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-core test-corpus test-kills test-training test-serving test-rest check bench manifests lock

setup: $(VENV)/.ready

# torch comes by pip, which finds a build for this machine where its configuration names one;
# uv then takes all else from the lock, and pip does where uv cannot be had.
$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
		f"Python {v[0]}.{v[1]}: OneFlow needs 3.11, 3.12 or 3.13; name one with: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: torch"; $(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock $(TORCH)
	@echo "setup: all else, from requirements.lock"; \
	if $(BIN)/python -m pip install -q --disable-pip-version-check $(UV) && \
		$(BIN)/uv pip install -q --compile-bytecode -p $(BIN)/python -r requirements.lock; then :; else \
		echo "setup: uv could not do it; pip does, in some minutes"; \
		$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock; fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@; echo "setup: done; activate with: source $(BIN)/activate"

demo: setup
	$(BIN)/oneflow demo

# The parts share nothing: three run beside each other, each one test after the other. The longest come first; the kills,
# which wait, and the method's tests, which only compute, fill both cores at the end. More at once starve each other's Ray.
# What fails there is run once more with nothing beside it, and told at the end: a test that fails twice fails.
PARTS := test-rest test-training test-corpus test-serving test-kills test-core
test: setup
	@rm -rf $(TESTED)
	-@$(MAKE) --no-print-directory -j 3 -k $(PARTS)
	@again=$$(for part in $(PARTS); do test -e $(TESTED)/$$part.passed || echo $$part; done); test -z "$$again" || { \
		grep -Hs : $(TESTED)/*/v/cache/lastfailed > $(TESTED)/failed; echo "once more, with nothing beside it:" $$again; \
		exec $(MAKE) --no-print-directory -k $$again AGAIN=--last-failed; }
	@test ! -e $(TESTED)/failed || { echo "passed alone, but failed beside other tests:"; cat $(TESTED)/failed; }

# One part: pytest's memory of what failed, and whether all passed. No command here has a shell above it, so that a
# signal to make reaches it.
TESTED := build/tests
define part
	@mkdir -p $(TESTED)
	$(BIN)/python -m pytest $(1) -o cache_dir=$(TESTED)/$@ $(AGAIN)
	@touch $(TESTED)/$@.passed
endef

test-core: setup
	$(call part,tests/core -n 2)

test-corpus: setup
	$(call part,tests/workflows/corpus --durations 8)

test-kills: setup
	$(call part,tests/workflows/training/test_kills.py --durations 8)

test-training: setup
	$(call part,tests/workflows/training --ignore tests/workflows/training/test_kills.py --durations 8)

test-serving: setup
	$(call part,tests/workflows/serving tests/workflows/evaluation --durations 8)

test-rest: setup
	$(call part,tests --ignore tests/core --ignore tests/workflows/corpus --ignore tests/workflows/training --ignore tests/workflows/serving --ignore tests/workflows/evaluation --durations 8)

check: setup
	$(BIN)/ruff format $(if $(CI),--check) .
	$(BIN)/ruff check $(if $(CI),,--fix) .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each in turn; storage on a store of its own, which is gone afterwards. The first run of peer-transfusion installs the
# peer into build/peers.
bench: export ONEFLOW_HOME := $(CURDIR)/build/bench
bench: setup
	for name in train-step sample mfu packing targets vocab-loss peer-transfusion encode rebuild loader resume scale train-loop serve evaluate; do $(BIN)/oneflow bench $$name --json || exit 1; done
	$(BIN)/oneflow stack up --config infra/local/store-only.yaml --set mlflow.enabled=false
	$(BIN)/oneflow bench storage --json; code=$$?; $(BIN)/oneflow stack down --purge; exit $$code

# The manifests in infra/kuberay/base, from the job configs.
manifests: setup
	for job in corpus-shapes train-shapes serve-shapes; do \
		$(BIN)/oneflow submit $$job --render > infra/kuberay/base/$$job.yaml || exit 1; done

# The lock for Python 3.11 to 3.13 on Linux; torch and what its build brings (CUDA) stay out of it.
lock:
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --all-extras --no-annotate --no-header \
		--constraint <(echo $(TORCH)) pyproject.toml | grep -vE '^(torch=|triton|nvidia-|cuda-)' > requirements.lock.new
	mv requirements.lock.new requirements.lock
lock: SHELL := /bin/bash
lock: .SHELLFLAGS := -o pipefail -ec
