# Two commands from a fresh clone: `make demo` and `make test`. Each target sets up what it needs in
# .venv, where the package is installed as the wheel that users get; nothing is redone without need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS := build/bench
# UCX and its ucx_perftest are those of the wheel of libucx.
UCX_BIN = $(abspath $(shell ls -d $(VENV)/lib/python3*/site-packages/libucx/bin))
BENCH_RUN = PATH="$(UCX_BIN):$$PATH" $(BIN)/dask fabric bench $(BENCH)
UCX_COLUMN = --protocols tcp,fabric,fabric+tcp,fabric+ucx --ucx-library perftest
SOURCES := pyproject.toml README.md LICENSE $(shell find cython src -type f -not -name '*.pyc')

.PHONY: help demo test test-all deployers ecosystem release-check test-versions test-older bench figures instructions coverage sanitize fuzz fuzz-corpus simulate chaos lint docs screenshots clean sanitize-address sanitize-thread
.DELETE_ON_ERROR:

help:
	@echo "make demo   a cluster on fabric:// and on tcp://, on real data (about a minute)"
	@echo "make test   lint, and the tests on the installed wheel, in four processes; JOBS= in one"
	@echo "make test-all  the slow tests as well"
	@echo "make test-versions  all tests on Python 3.10 with the lowest dependencies and on 3.13 with the"
	@echo "            newest; TESTS=tests/wire for some"
	@echo "make test-older  a process of this version and one of an older commit talk to each other; COMMIT=..."
	@echo "make deployers  clusters by Slurm, SGE, MPI, ssh and all other deployers, as their pages describe"
	@echo "make release-check  an sdist, and a wheel for each Python of this host, each tried in an empty"
	@echo "            environment; VERSIONS='3.10 3.13' for some. Into dist/"
	@echo "make bench  the figures of the README; JSON and pages in $(RESULTS)/; BENCH=--quick for a first look,"
	@echo "            UCXX=PYTHON beside the distributed-ucxx of that Python"
	@echo "make figures  what README and docs/benchmarks.md show: three quick runs into benchmarks/results/"
	@echo "make instructions  instructions per small message and per connect, counted by valgrind, against"
	@echo "            benchmarks/instructions.json; RECORD=1 makes what is counted the new baseline"
	@echo "make coverage  which lines of the compiled modules no test runs; TESTS=tests/wire for one suite"
	@echo "make ecosystem  objects of pandas, PyArrow, PyTorch and others between workers, libraries on Dask"
	@echo "            (xgboost, xarray, ...), and the tutorial; installs them, which make test does not"
	@echo "make sanitize  tests with the compiler's checks of memory and of threads; TESTS=tests/wire,"
	@echo "            SANITIZERS=address for one of the two"
	@echo "make fuzz   inputs against everything that reads from a peer, guided by coverage; needs clang"
	@echo "            (TIME=SECONDS for all targets together, TARGETS='records connection')"
	@echo "make fuzz-corpus  keep in tests/corpus the fewest inputs that reach all that those so far reach"
	@echo "make simulate  a million schedules of two connections, from a seed (COUNT=..., SEED=...)"
	@echo "make chaos  a cluster in network namespaces computes while workers, nannies and links fail, from a"
	@echo "            seed (TIME=10m, SEED=..., CHAOS='--scheme tcp' or --key or --encrypt); needs root"
	@echo "make lint   ruff, mypy, and which module may import which"
	@echo "make docs   the documentation, in site/"
	@echo "make screenshots  the pictures in docs/images, by Chromium"
	@echo "make clean  remove what these commands made"

demo: $(VENV)/extra-bench
	$(BIN)/python benchmarks/demo.py

# Tests wait more than they compute, so more of them run at once than there are cores. The tests of a
# file stay together.
JOBS ?= 4
PYTEST = $(BIN)/python -m pytest $(JOBS:%=-n % --dist loadfile)

test: lint $(VENV)/extra-ucx $(VENV)/extra-ofi
	$(PYTEST) -m "not slow"

test-all: lint $(VENV)/extra-ucx $(VENV)/extra-ofi
	$(PYTEST)

test-versions: $(BIN)/python
	$(BIN)/python tests/versions.py 3.10:lowest 3.13:newest -- $(TESTS)

test-older: $(VENV)/extra-test $(VENV)/extra-ucx
	$(BIN)/python tests/older.py $(COMMIT)

deployers: $(VENV)/extra-test $(VENV)/extra-deployers
	@echo "Tests whose programs are missing are skipped. On Debian, these two commands install all:"
	@echo "  apt-get install slurmctld slurmd slurm-client munge openmpi-bin openssh-server openssh-client"
	@echo "  apt-get install gridengine-master gridengine-exec gridengine-client iproute2"
	$(BIN)/python -m pytest tests/deployers

release-check: $(BIN)/python
	$(BIN)/python -m tests.release.check $(VERSIONS)

bench: $(VENV)/extra-bench $(VENV)/extra-ucx
	mkdir -p $(RESULTS)
	$(BENCH_RUN) pingpong stream bandwidth gil cpu connect memory $(UCX_COLUMN) $(UCXX:%=--ucxx %) \
	  --ways one --json $(RESULTS)/comm.json --html $(RESULTS)/comm.html
	$(BENCH_RUN) pingpong stream bandwidth gil connect --protocols tls,fabric+tls \
	  --ways one --json $(RESULTS)/tls.json
	$(BENCH_RUN) work --json $(RESULTS)/work.json --html $(RESULTS)/work.html
	$(BIN)/python benchmarks/asked.py $(RESULTS)/comm.json $(RESULTS)/tls.json $(RESULTS)/work.json

figures:
	for run in 1 2 3; do \
	  $(MAKE) bench BENCH=--quick && for suite in comm tls work; do \
	    cp $(RESULTS)/$$suite.json benchmarks/results/$$suite-$$run.json || exit 1; \
	  done || exit 1; \
	done
	$(BIN)/python docs/generate.py

instructions: $(VENV)/extra-test
	$(BIN)/python benchmarks/instructions.py $(if $(RECORD),--record)

coverage: $(BIN)/python
	$(BIN)/python -m tests.covered -- $(TESTS)

ecosystem: $(VENV)/extra-test $(VENV)/extra-ecosystem
	$(BIN)/python -m pytest tests/ecosystem $(JOBS:%=-n % --dist loadfile)

SANITIZERS ?= address thread
sanitize: $(SANITIZERS:%=sanitize-%)

sanitize-address sanitize-thread: sanitize-%: $(BIN)/python
	$(BIN)/python -m tests.sanitize $* -- $(TESTS)

fuzz: $(VENV)/extra-test
	$(BIN)/python -m tests.fuzzing --time $(or $(TIME),600) $(if $(TARGETS),--targets $(TARGETS))

fuzz-corpus: $(VENV)/extra-test
	$(BIN)/python -m tests.fuzzing --minimise

simulate: $(VENV)/extra-test
	$(BIN)/python -m tests.simulation --count $(or $(COUNT),1000000) $(SEED:%=--seed %) --processes 2

chaos: $(VENV)/extra-test
	$(BIN)/python -m tests.programs.chaos --time $(or $(TIME),10m) $(SEED:%=--seed %) $(CHAOS)

lint: $(VENV)/extra-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

screenshots: $(VENV)/extra-test $(VENV)/extra-bench
	$(BIN)/python docs/screenshots.py

docs: $(VENV)/extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-* build dist site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "dask-fabric needs Python 3.10 or later; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/package: $(SOURCES) | $(BIN)/python
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(VENV)/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheel/*.whl
	touch $@

# The package itself comes from the rule above; this one adds what it and the extra depend on.
$(VENV)/extra-%: pyproject.toml | $(VENV)/package
	$(BIN)/python -m pip install --quiet "$$(echo $(VENV)/wheel/*.whl)[$*]"
	touch $@
