# make demo          set up everything and run the main job (STUDY=folder takes your own DICOM files)
# make test          set up everything and run all tests
# make check         ruff, mypy, import-linter and the everyday tests: those without servers
# make rows          the everyday tests of the fault matrix (DATABASE=postgresql: on that)
# make figures       the measurements that README quotes
# make digests       dicom_node/shipped.sha256 anew, after a change to the bundles that come with it
# make soak          a node under load and a nemesis (MINUTES=30 DATABASE=sqlite|postgresql SEED=7)
# make fuzz          damaged PDUs and data sets against a listener (COUNT=100000)
# make defences      takes each defence out and shows that its test goes red (ROWS="1 27")
# make view          the demo's results, or those of STUDY=folder, in the OHIF viewer
VENV ?= .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin

.PHONY: demo view test check rows lint figures digests soak fuzz defences services clean

demo: $(VENV)/.installed
	$(BIN)/dicom-node demo $(if $(STUDY),--study "$(STUDY)")

view: $(VENV)/.installed-dev services
	@$(BIN)/python -m tests.viewer.view $(if $(STUDY),"$(STUDY)")

# What holds seconds or bytes against a limit, and the browser, run alone, after the others, which run
# two side by side, a thread each; in the order of their names, in which the longest do not come last.
ALONE := tests/benchmarks tests/acceptance/test_viewer.py tests/faults/test_rows_wire.py tests/faults/test_shutdown.py \
	$(addprefix tests/integration/test_,listener.py tls.py)
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev services lint
	$(SIDE_BY_SIDE) $(addprefix --ignore=,$(ALONE))
	$(BIN)/pytest $(ALONE)

check: $(VENV)/.installed-dev lint
	$(SIDE_BY_SIDE) -m "not slow" tests/unit

ROW_TESTS := $(shell grep -rl --include='test_*.py' 'def test_row_' tests)
EVERYDAY = -k test_row_ -m "not slow" --database $(DATABASE) --durations 10

rows: $(VENV)/.installed-dev services
	$(SIDE_BY_SIDE) $(EVERYDAY) $(filter-out $(ALONE),$(ROW_TESTS))
	OMP_NUM_THREADS=1 $(BIN)/pytest $(EVERYDAY) $(filter $(ALONE),$(ROW_TESTS))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.ingest
	$(BIN)/python -m tests.benchmarks.whole_way
	$(BIN)/python -m tests.benchmarks.segmentation
	$(BIN)/python -m tests.benchmarks.training

digests:
	cd dicom_node && sha256sum bundles/*/manifest.json > shipped.sha256

MINUTES ?= 30
DATABASE ?= sqlite
COUNT ?= 100000

soak: $(VENV)/.installed-dev services
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --database $(DATABASE) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.faults.fuzz --count $(COUNT) $(if $(SEED),--seed $(SEED))

defences: $(VENV)/.installed-dev services
	$(BIN)/python -m tests.faults.defences $(addprefix --row ,$(ROWS))

services:
	@sh tests/install-services.sh

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "installing dicom-node with its dependencies; torch is large, this takes a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml
	@echo "installing dicom-node with what its tests need; torch is large, this takes a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
