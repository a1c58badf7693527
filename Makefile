# Two commands do everything: `make book` and `make test`. `make` alone lists the others.
#
# Everything runs in .venv, which is made from requirements.lock. PYTHON is only what makes it.
PYTHON ?= python3
UV ?= uv

VENV := .venv
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
# Stages and hooks that say `python` get the one of .venv. Not exported for all recipes: the one that
# makes .venv must not find its own product.
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
FIRST_PAGE := book/_build/html/index.html

export DVC_NO_ANALYTICS := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# One target after the other, in the order given, with -j too: all of them read or write the results.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help book repro html test lint lab bench hooks lock clean distclean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) \
		| awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@echo "  PYTHON=...      the Python (3.11 or newer) that makes .venv; default: python3"

book: repro html ## run what has changed in the pipeline, then build the book

repro: $(INSTALLED) ## only run what has changed in the pipeline; EXPERIMENT=... names another one
	$(IN_VENV) python -m pipeline.params
	$(IN_VENV) python -m pipeline.repro $(EXPERIMENT)
	$(IN_VENV) python -m pipeline.readme

# Sphinx reads changed pages only, and so would not repeat the warnings of a page that it has read:
# after a failure the next build starts from nothing.
html: $(INSTALLED) ## build the book from the results as they are; warnings are errors
	@$(IN_VENV) jupyter-book build --quiet --warningiserror --keep-going book \
		|| { rm -rf book/_build/.doctrees; exit 1; }
	@echo "The book: $(CURDIR)/$(FIRST_PAGE)"

test: lint ## lint, and run all tests
	$(IN_VENV) python -m pytest

lint: $(INSTALLED) ## only the checks that take seconds
	$(IN_VENV) ruff check
	$(IN_VENV) ruff format --check
	$(IN_VENV) python -m pipeline.strip_notebooks --check
	$(IN_VENV) python -m pipeline.params
	$(IN_VENV) python -m pipeline.readme --check

lab: $(INSTALLED) ## open the notebooks in JupyterLab
	$(IN_VENV) jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

# Not a stage of the pipeline: its numbers belong to the machine. It wants the machine for itself.
bench: $(INSTALLED) ## measure speed and memory on this machine (about 5 minutes on 2 cores)
	$(IN_VENV) python -m benchmarks.memory_and_speed $(BENCH)

hooks: $(INSTALLED) ## have git run the checks of .pre-commit-config.yaml before each commit
	$(IN_VENV) pre-commit install

# Versions that still fit are kept; `make lock UPGRADE=--upgrade` takes the newest of everything.
lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	@command -v $(UV) >/dev/null || { \
		echo "make lock needs uv (python3 -m pip install uv), or UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --all-extras --group build --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --quiet $(UPGRADE) --output-file requirements.lock

clean: ## remove the built book and caches; keep .venv and the results
	rm -rf book/_build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

# The environment. A stamp is written when its step is complete, so that an interrupted one is done
# again; it starts from an empty .venv, which a half-written package would otherwise survive in.
$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "'$(PYTHON)' comes without venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "Installing into $(VENV): about 6 GB, some minutes"
	@base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)') \
		&& "$$base" -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
