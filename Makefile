# All targets work from a fresh clone; what they need beyond Python 3.11, git and make they install into .venv.
#
#   make setup PYTHON=python3.12     another interpreter
#   make demo PBS=openpbs            on a real OpenPBS in /opt/pbs instead of the stand-in (root)
#   make demo DRIVER=libvirt         in two real virtual machines that exchange memory (root)
#   make test TESTS=tests/unit       a part of the tests
#   make bench QUICK=1               fewer rounds
#   make mutation MUTANTS=50         another number of mutants
#   make fuzz TARGETS=pbs-select     only this reader; also INPUTS=1000000, LONGEST_S=600, SEED=2

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TESTS ?= tests
PBS ?=
DRIVER ?=
QUICK ?=
MUTANTS ?=
INPUTS ?=
LONGEST_S ?=
TARGETS ?=
SEED ?=
BIN = .venv/bin
# What real virtual machines need; tests/libvirt builds its guests from more packages, which it only downloads.
PACKAGES = libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-driver-lxc libvirt-clients libvirt-dev \
  qemu-system-x86 qemu-utils gcc pkg-config cpio e2fsprogs mmdebstrap

# Without Python's compiled files each test process compiles all modules and rewrites all tests anew: 7 s each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup packages libvirt demo check test test-guests test-openpbs bench lint coverage mutation fuzz \
  requirements clean

help: ## this text
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24
	@sed -n 's/^#   \(make .*\)/  \1/p' $(firstword $(MAKEFILE_LIST))

setup: .venv/stamp ## virtual environment with everything pinned (quick when up to date)

.venv/stamp: pyproject.toml constraints.txt magrathea/__init__.py
	@test -n "$(PYTHON)" || { echo "make setup: no Python 3.11 or later found; install one, or name it: make setup PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  rm -rf .venv; echo "make setup: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing" $$missing; apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "tests/libvirt will not run; as root: apt-get install" $$missing; fi

# libvirt's Python binding is built with this machine's libraries, so only if they are installed.
BINDING = if pkg-config --exists libvirt 2>/dev/null && ! $(BIN)/python -c 'import libvirt' 2>/dev/null; then \
  PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[libvirt]'; fi

libvirt: setup packages
	@$(BINDING)

demo: setup ## see it work, under two minutes: no root, no PBS needed
	@$(if $(filter libvirt,$(DRIVER)),$(BINDING),:)
	$(BIN)/magrathea demo $(if $(PBS),--pbs $(PBS)) $(if $(DRIVER),--driver $(DRIVER))

lint: setup ## format, ruff, mypy --strict, and which way imports go
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

# Most tests wait more than they compute, hence two workers per core. All tests of a file run in one worker, because they
# share what they have started. The longest files begin first (tests/conftest.py).
WORKERS ?= $(shell expr 2 \* $$(nproc))
BESIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# On OpenPBS each worker has its own cluster of some 60 processes; each worker with guests has its own libvirtd.
CLUSTERS ?= 3
HYPERVISORS ?= 2

# On real servers and emulated guests a test may fail because it got too little CPU: then it is run once more.
# .reruns.log keeps the time, the test and the reason. `make test` never repeats a test.
AGAIN = --reruns 1

check: lint ## before each commit, a minute: lint, the short unit tests and the properties with few examples and some rows of long tables
	$(BIN)/pytest -n $$(nproc) --dist worksteal --hypothesis-profile=check -m 'not long' tests/unit tests/property

test: lint libvirt ## all suites in ten minutes, and the first tests of those on real systems
ifeq ($(TESTS),tests)
	$(BIN)/pytest -rfEs $(BESIDE) -m 'first or not real' tests
else
	$(BIN)/pytest -rfEs $(TESTS)
endif

# REQUIRED= : if something is missing, the summary names it and the run does not fail.
REQUIRED ?= 1

test-guests: libvirt ## the whole suite on real virtual machines and containers (root)
	MAGRATHEA_REQUIRE_LIBVIRT=$(REQUIRED) $(BIN)/pytest -rfEs $(AGAIN) -n $(HYPERVISORS) --dist loadfile --no-loadscope-reorder tests/libvirt

test-openpbs: libvirt ## the whole suite on a real OpenPBS in /opt/pbs (root)
	MAGRATHEA_REQUIRE_OPENPBS=$(REQUIRED) $(BIN)/pytest -rfEs $(AGAIN) -n $(CLUSTERS) --dist loadfile --no-loadscope-reorder tests/openpbs

bench: libvirt ## all figures, one table
	$(BIN)/python -m bench $(if $(QUICK),--quick)

QUALITY = $(BIN)/python -c 'import coverage, mutmut' 2>/dev/null || \
  PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[quality]'

coverage: setup ## branch coverage of the core by its unit and property tests, two minutes
	@$(QUALITY)
	$(BIN)/coverage run -m pytest --ignore=tests/unit/core/test_docs.py tests/unit/core tests/property
	$(BIN)/coverage report

mutation: setup ## how many of 300 small faults in the core its tests notice, five minutes
	@$(QUALITY)
	$(BIN)/python -m bench.core_mutation $(if $(MUTANTS),--mutants $(MUTANTS))

fuzz: setup ## mutated samples for whatever reads foreign bytes, a few minutes
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS)) $(if $(LONGEST_S),--seconds $(LONGEST_S)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(TARGETS),--targets "$(TARGETS)")

# For CPython on every platform. Of the package itself and what builds it, only wheels are taken: a source package would
# bring requirements of its own, without hashes. libvirt's binding exists as source only.
HASHED = UV_CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --no-annotate --constraints constraints.txt --no-emit-package cffi --no-emit-package pycparser

requirements: setup ## deploy/requirements*.txt anew, with hashes; after a change of pyproject.toml or constraints.txt
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[requirements]'
	$(HASHED) --only-binary :all: --emit-build-options pyproject.toml deploy/build.in --output-file deploy/requirements.txt
	$(HASHED) deploy/libvirt.in --output-file deploy/requirements-libvirt.txt

clean: ## remove what was built
	rm -rf .venv .coverage .fuzz .reruns.log .failures.log build dist
