# The one-command doors of the workbench. Each makes .venv with the tested packages first if it is missing or out of date.
.PHONY: help install demo lab test drill docs readme wheel bench clean
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
# Under this name `make -n` prints the line that calls it; a line with make's own variable in it is run all the same.
AGAIN := $(MAKE)
STAMP := $(VENV)/.installed
# The versions to install; constraints-lowest.txt has the floors, /dev/null leaves it to the newest.
CONSTRAINTS ?= constraints.txt
# `make bench BENCH=--quick` takes minutes instead of the better part of an hour.
BENCH ?=
# `make drill DRILL='--kills 6 --writes 6 --notebooks 1'` is a small one.
DRILL ?=
# What the environment was installed for; another place, another pyproject.toml or other versions install anew.
WANTED = $$( (pwd; cat pyproject.toml $(CONSTRAINTS); echo $(CONSTRAINTS)) | cksum)
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

help:
	@echo "make demo     set up, train a tiny student on generated data, evaluate it, print the table (minutes on a CPU)"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make test     set up and run every check: ruff, types, the notebooks' own tests, pytest"
	@echo "make drill    kill runs at random moments and at every write, and compare what they end with (most of an hour)"
	@echo "make docs     build the documentation into docs/_build/html"
	@echo "make readme   write README.md from nbs/index.ipynb"
	@echo "make wheel    build sdist and wheel into dist/, install them where nothing else is and run the demo there"
	@echo "make bench    measure speed and memory beside the published formula (in minutes: make bench BENCH=--quick)"
	@echo "make clean    delete .venv, caches and built documentation; runs in outputs/ stay"

install:
	@if [ -f "$(STAMP)" ] && [ "$$(cat "$(STAMP)")" = "$(WANTED)" ] && "$(BIN)/python" -c "" 2>/dev/null; then exit 0; fi; \
	set -e; \
	"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "$(PYTHON) is older than Python 3.11 (or missing); name another: make PYTHON=python3.12 …" >&2; exit 1; }; \
	if ! "$(BIN)/python" -m pip --version >/dev/null 2>&1 || ! grep -qF "$(VENV)" "$(BIN)/activate"; then \
	    echo "Making .venv"; rm -rf "$(VENV)"; \
	    "$(PYTHON)" -m venv "$(VENV)" >/dev/null 2>&1 || { \
	        rm -rf "$(VENV)"; "$(PYTHON)" -m venv --without-pip "$(VENV)"; \
	        "$(PYTHON)" -m pip --python "$(BIN)/python" install -q pip; }; \
	fi; \
	rm -f "$(STAMP)"; \
	echo "Installing the packages (minutes the first time)"; \
	$(AGAIN) --no-print-directory packages hooks; \
	printf '%s' "$(WANTED)" > "$(STAMP)"

# uv, where it is there, takes a fraction of the time. It does not read pip's configuration, which may name another index
# or a folder with PyTorch for this machine: it is told, and like pip it takes the best version of all places.
.PHONY: packages
packages:
	@said() { "$(BIN)/python" -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$$1='\(.*\)'$$/\1/p" | sed 's/\\n/ /g' | xargs; }; \
	if command -v uv >/dev/null 2>&1; then \
	    index=$$(said index-url | cut -d' ' -f1); \
	    if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	    export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(said find-links | tr ' ' ,)}" UV_INDEX="$${UV_INDEX:-$$(said extra-index-url)}"; \
	    UV_INDEX_STRATEGY=unsafe-best-match uv pip install -q --python "$(BIN)/python" -e '.[dev]' -c $(CONSTRAINTS) && exit 0; \
	    echo "uv could not install the packages; pip tries it."; \
	fi; \
	"$(BIN)/python" -m pip install -q --disable-pip-version-check -e '.[dev]' -c $(CONSTRAINTS)

# Notebooks are cleaned when JupyterLab saves them and merged cell by cell by git. nbdev would set this up in the home
# folder; the environment's own Jupyter folder does as well and leaves the home folder alone.
.PHONY: hooks
hooks:
	@mkdir -p "$(VENV)/home" "$(VENV)/etc/jupyter/jupyter_server_config.d"; \
	cp cotmi/dashboards/cotmi.json "$(VENV)/etc/jupyter/jupyter_server_config.d/"; \
	if GIT_CONFIG_GLOBAL="$${GIT_CONFIG_GLOBAL:-$$HOME/.gitconfig}" HOME="$(VENV)/home" PATH="$(BIN):$$PATH" \
	    sh -c '[ -d .git ] && git rev-parse --git-dir && nbdev-install-hooks --diff False && \
	           git config --file .gitconfig merge.jupyternotebook.driver "\"$(BIN)/nbdev-merge\" %O %A %B %P" && \
	           printf "#!/bin/sh\n\"$(BIN)/nbdev-trust\" >/dev/null 2>&1 || true\n" > .git/hooks/post-merge && \
	           cp "$(VENV)/home/.jupyter/jupyter_server_config.py" "$(VENV)/etc/jupyter/"' >/dev/null 2>&1; \
	then :; else echo "No git hooks were installed (not a git checkout of its own, or git refused it)."; fi

demo: install
	@"$(BIN)/cotmi" run demo --reuse

lab: install
	@"$(BIN)/jupyter" lab $(AS_ROOT) --LabApp.default_url=/lab/tree/nbs/index.ipynb

test: install
	"$(BIN)/ruff" check
	.ci/sizes
	"$(BIN)/basedpyright"
	HF_HUB_OFFLINE=1 "$(BIN)/nbdev-test" --n-workers 2
	"$(BIN)/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder

drill: install
	"$(BIN)/python" tests/drill.py $(DRILL)

docs: install
	@"$(BIN)/python" docs/build.py

readme: install
	@"$(BIN)/python" docs/build.py --readme

wheel: install
	@"$(BIN)/python" -m build --no-isolation -o dist .
	@"$(BIN)/python" -m pytest tests/test_wheel.py

bench: install
	@"$(BIN)/python" -m benchmarks.step $(BENCH)
	@[ -n "$(BENCH)" ] || { "$(BIN)/python" -m benchmarks.evaluate && "$(BIN)/python" -m benchmarks.mi_side_by_side; }

clean:
	rm -rf .venv dist build _proc docs/_build docs/_site_src .pytest_cache .ruff_cache .hypothesis cotmi.egg-info
	find nbs cotmi tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
