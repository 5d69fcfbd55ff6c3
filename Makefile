# All targets work from a fresh clone; what they need beyond Python 3.11, git and make they install into .venv.
#
#   make setup PYTHON=python3.12     another interpreter
#   make demo PBS=openpbs            on a real OpenPBS in /opt/pbs instead of the stand-in (root)
#   make demo DRIVER=libvirt         in two real virtual machines, between which memory moves (root)
#   make test TESTS=tests/unit       a part of the tests
#   make bench QUICK=1               fewer rounds

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TESTS ?= tests
PBS ?=
DRIVER ?=
QUICK ?=
BIN = .venv/bin
# What real virtual machines need; tests/libvirt builds its guests from more packages, which it only downloads.
PACKAGES = libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-driver-lxc libvirt-clients libvirt-dev \
  qemu-system-x86 qemu-utils gcc pkg-config cpio e2fsprogs

.DEFAULT_GOAL := help
.PHONY: help setup packages libvirt demo test test-openpbs bench lint clean

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

# libvirt's Python binding is built against the libraries of this machine, so only where they are.
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

# Each worker has a cluster of its own.
ON_OPENPBS = $(if $(wildcard /opt/pbs/sbin/pbs_server),-n 3 --dist loadfile)

# On real servers and emulated guests beside each other a test may fail for want of time: it is run once more, and the
# summary names it (RERUN). Whoever fails twice has failed. No other suite is given that.
AGAIN = --reruns 1 -rsR

# The suite on OpenPBS mostly waits, and guests boot, so both run beside the others; each report comes whole.
test: lint libvirt ## everything: lint, then all suites; says what it could not run
ifeq ($(TESTS),tests)
	@$(BIN)/pytest -rs --ignore=tests/openpbs --ignore=tests/libvirt tests > .tests.log 2>&1 & others=$$!; \
	$(BIN)/pytest $(AGAIN) tests/libvirt > .libvirt.log 2>&1 & guests=$$!; \
	trap 'kill $$others $$guests 2>/dev/null' EXIT INT TERM; \
	echo "tests/openpbs, beside all the others:"; $(BIN)/pytest $(AGAIN) $(ON_OPENPBS) tests/openpbs; openpbs=$$?; \
	echo "all the others:"; tail -n +1 -f --pid=$$others .tests.log; wait $$others; rest=$$?; \
	echo "tests/libvirt:"; tail -n +1 -f --pid=$$guests .libvirt.log; wait $$guests; real=$$?; \
	test $$openpbs = 0 && test $$rest = 0 && test $$real = 0
else
	$(BIN)/pytest -rs $(TESTS)
endif

test-openpbs: libvirt ## the suite on a real OpenPBS in /opt/pbs (root); without one it fails
	MAGRATHEA_REQUIRE_OPENPBS=1 $(BIN)/pytest -rs $(ON_OPENPBS) tests/openpbs

bench: libvirt ## all figures, one table
	$(BIN)/python -m bench $(if $(QUICK),--quick)

clean: ## remove what was built
	rm -rf .venv .tests.log .libvirt.log build dist
