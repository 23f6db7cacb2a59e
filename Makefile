# Every target makes its own environment, .venv, before it starts; `make help` lists the targets.

PYTHON := >=3.11,<3.15
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
UV_READY := $(if $(filter uv,$(UV)),,.uv/.ready)
# On a terminal uv shows its progress; in a log a line per step is enough.
QUIET := $(shell test -t 2 || echo --quiet)
EXTRAS := ablations demo dev lpips notebooks peers probes slurm teachers tensorboard vae

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo bridge-demo study test bench check lock clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: .venv/.ready  ## train two small autoencoders on photographs, in minutes on a CPU, and write their reports
	@.venv/bin/latelier demo --out runs/demo
	@.venv/bin/latelier demo dinac_ae --out runs/demo_dinac_ae

bridge-demo: .venv/.ready  ## train a bridge from small latents to HOG, and a stem for other latents, and write the report
	@.venv/bin/latelier demo bridge --out runs/demo_bridge

study: .venv/.ready  ## compare two teachers and two encoders over three seeds, in minutes, and write the report
	@.venv/bin/latelier ablate demo/teachers_and_encoders --jobs 2 --out runs/study

test: .venv/.ready  ## run all tests
	@.venv/bin/pytest --numprocesses auto --dist loadfile

bench: .venv/.ready  ## measure the blocks and families, and guard the fast paths
	@.venv/bin/pytest benchmarks

check: .venv/.ready  ## lint, formatting, types, layers, and a wheel that works when installed
	@echo "check: ruff"
	@.venv/bin/ruff check --quiet --output-format concise
	@.venv/bin/ruff format --quiet --check
	@echo "check: types of the library"
	@.venv/bin/pyright --warnings
	@echo "check: layers"
	@.venv/bin/pytest -q tests/test_layers.py
	@echo "check: the wheel"
	@UV="$(UV)" .venv/bin/python .ci/check_wheel.py

lock: $(UV_READY)  ## write requirements.lock anew from pyproject.toml; delete it first to take the newest versions
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate $(EXTRAS:%=--extra %) pyproject.toml -o requirements.lock

clean:  ## remove the environment, caches and build products; runs/ stays
	@rm -rf .venv .uv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A marker is written last, so an interrupted set-up is redone; without it whatever .venv holds is not to be trusted.
.venv/.ready: requirements.lock pyproject.toml $(UV_READY)
	@if [ ! -e $@ ]; then \
		echo "set-up: making .venv"; \
		rm -rf .venv; \
		$(UV) venv --quiet --no-project --python "$(PYTHON)" .venv || { \
			echo "set-up: found no Python $(PYTHON); install one, and run make again" >&2; exit 1; }; \
	fi
	@rm -f $@
	@echo "set-up: installing requirements.lock (the first time downloads about 3 GB, most of it torch)"
	@$(UV) pip sync $(QUIET) --python .venv --require-hashes requirements.lock
	@echo "set-up: installing latelier, editable"
	@$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@

.uv/.ready:
	@echo "set-up: found no uv; installing one into .uv"
	@rm -rf .uv
	@python3 -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv || { \
		echo "set-up: could not install uv; install uv yourself, or Python 3.11 or newer with its venv module" >&2; exit 1; }
	@touch $@
