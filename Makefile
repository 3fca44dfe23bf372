# Two commands for everybody, each from nothing:
#   make quickstart   fit a posterior on this machine (about a minute on two cores, no download but the packages)
#   make test         lint, types and all tests
# Another interpreter: make PYTHON=python3.12 test. pip's own settings (PIP_INDEX_URL, ...) are respected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without compiling, which takes as long as all the rest: Python compiles what is imported.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

# Tests: Ray starts on loopback only, never joins another cluster, nothing is fetched, few threads for few cores; Ray's
# workers are as nice as all others, or another job on the machine makes minutes of seconds.
TEST_ENV := env -u RAY_ADDRESS RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 HF_HUB_OFFLINE=1 \
	MPLBACKEND=agg OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q --durations=15

.PHONY: quickstart test tests-of-ray other-tests lint clean

quickstart: $(VENV)/installed
	$(BIN)/afterfit run configs/quickstart.yaml

test: lint
	$(MAKE) -j2 -k tests-of-ray other-tests

# Side by side: what Ray's processes wait for leaves time to the others.
tests-of-ray:
	$(PYTEST) -o cache_dir=.pytest_cache/ray -m ray
other-tests:
	$(PYTEST) -o cache_dir=.pytest_cache/others -m "not ray"

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"afterfit needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Without build isolation the build backend is pinned too, and pip has nothing to fetch behind our back.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) hatchling editables
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@
