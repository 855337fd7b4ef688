# Two commands on a fresh machine: `make demo` and `make test`. Both first make .venv/.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h csrc/*.py)

.PHONY: demo test lint bench sanitize coverage emulate clean

demo: .venv/.installed
	$(BIN)/minifm demo --out runs/demo

test: .venv/.installed
	HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n 2 tests

lint: .venv/.installed
	$(BIN)/ruff check

bench: .venv/.installed
	$(BIN)/minifm bench

# Proof of the C kernels, each of minutes, on Linux with gcc: see tests/instruments.py. Under
# AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; the lines that the tests reach;
# the kernels of processors that this machine lacks.
sanitize: .venv/.installed
	$(BIN)/python tests/instruments.py address -n 2
	$(BIN)/python tests/instruments.py threads -n 2

coverage: .venv/.installed
	$(BIN)/python tests/instruments.py coverage -n 2

emulate: .venv/.installed
	$(BIN)/python tests/instruments.py avx512 -n 2
	$(BIN)/python tests/instruments.py avx512bf16 -n 2
	$(BIN)/python tests/instruments.py neon -n 2
	$(BIN)/python tests/instruments.py arm64

# An editable install: the C kernels are built once, and again when their source changes.
.venv/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[viz,data,test,dev]'
	touch $@

clean:
	rm -rf build minifm.egg-info minifm/backends/_csrc* .venv
