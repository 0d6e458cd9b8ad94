# make demo, make test: everything they need is set up in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(shell find src/fastmap/_core -name '*.p[yx][xd]' -o -name '*.h')

# Where bpf(2) may not be used, or KERNEL is given (6.1, 6.12): in an emulated Linux.
KERNEL ?=
HERE = test -z "$(KERNEL)" && $(BIN)/python tests/guest/allowed.py
GUEST = $(BIN)/python -m tests.guest
# An emulated machine is some twenty times as slow.
NATIVE = -m "not slow and not native"

.PHONY: help demo test quick test-kernels quick-kernels matrix bench bench-once bench-peers bench-report bench-gate lint types tables docs wheel clean

help:
	@echo "make demo        build, and show this machine's system calls, live (root)"
	@echo "make test        build, and run all tests on this kernel (root)"
	@echo "make quick       the quick tests alone"
	@echo "make test-kernels  the tests in emulated Linux 6.1 and 6.12; matrix: CPU topologies too"
	@echo "make bench       the figures of docs/performance.md, against C and the other libraries, in one run"
	@echo "make bench-peers installs those libraries; bench-report makes a page of what bench measured"
	@echo "make bench-gate  system calls, memory and instructions of a call, against bench/gate.json; hot paths beside C"
	@echo "make lint types  ruff, cython-lint, mypy, stubtest"
	@echo "make tables      write the table of map types in docs anew, from the code"
	@echo "make docs        the guide, how-to pages and reference as HTML, in build/docs"
	@echo "make wheel       a wheel and an sdist in dist/"
	@echo "PYTHON=python3.13 chooses another Python (remove $(VENV) first)"

# One line for what cannot be had from PyPI.
$(BIN)/python:
	@command -v gcc >/dev/null || { echo "fastmap: no gcc: apt-get install gcc"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastmap: $(PYTHON) is older than 3.11: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
		{ echo "fastmap: no Python.h: apt-get install python3-dev"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "fastmap: no venv: apt-get install python3-venv"; exit 1; }

$(VENV)/.built: $(BIN)/python $(SOURCES)
	@echo "fastmap: building into $(VENV) (a minute at the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'setuptools>=77' wheel 'cython>=3.1,<4' 'numpy>=2.0'
	@FASTMAP_WERROR=1 $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(VENV)/.built
	@if $(HERE); then $(BIN)/python -m fastmap demo; else \
		$(GUEST) run --kernel $(or $(KERNEL),6.12) -- python -m fastmap demo; fi

test: $(VENV)/.built
	@if $(HERE); then $(BIN)/python -m pytest; else \
		echo "fastmap: the tests marked quick, for emulation is slow; make test-kernels has the others"; \
		$(GUEST) test --kernel $(or $(KERNEL),6.12) -- -q -m quick tests; fi

quick: $(VENV)/.built
	$(BIN)/python -m pytest -q -m quick

test-kernels: $(VENV)/.built
	$(GUEST) test -- -q $(NATIVE) tests

quick-kernels: $(VENV)/.built
	$(GUEST) test -- -q -m quick tests

matrix: $(VENV)/.built
	$(GUEST) matrix -- -q -m quick tests

bench: $(VENV)/.built
	@mkdir -p bench/build
	$(BIN)/python -m pytest bench -o python_files='bench_*.py' \
		--benchmark-json=bench/build/bench.json

bench-peers: $(VENV)/.built
	@$(BIN)/python -m bench.peers.install

bench-report: $(VENV)/.built
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])' | \
		xargs $(BIN)/python -m pip install -q --disable-pip-version-check
	@$(BIN)/python -m bench.report

bench-gate: $(VENV)/.built
	@$(BIN)/python -m bench.gate

bench-once: $(VENV)/.built
	$(BIN)/python -m pytest -q bench -o python_files='bench_*.py' --bench-once

lint: $(VENV)/.built
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src  # it calls pycodestyle

types: $(VENV)/.built
	$(BIN)/python -m pytest -q tests/repo/test_typing.py

tables: $(VENV)/.built
	$(BIN)/python tests/helpers/maptable.py

# Sphinx is not part of what the tests need: it is installed when it is first asked for.
$(VENV)/.docs: $(VENV)/.built
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/docs
	@echo "build/docs/index.html"

wheel: $(VENV)/.built
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist bench/build *.egg-info src/*.egg-info $$(find src/fastmap/_core -name '*.c' -o -name '*.so')
