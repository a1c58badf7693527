# Two commands do everything: `make book` and `make test`. `make` alone lists the others.
#
# Everything runs in .venv, which pipeline/environment.py makes from requirements.lock. PYTHON is only
# used to make it.
PYTHON ?= python3
UV ?= uv

VENV := .venv
# Stages and hooks that call `python` get the one of .venv. It is not exported for all recipes, because
# the recipe that makes .venv must not find its own product.
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
FIRST_PAGE := book/_build/html/index.html

export DVC_NO_ANALYTICS := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Targets run one after the other in the given order, even with -j: all read or write the results.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help book verify repro html pdf test coverage lint lab bench links dist hooks environment lock clean distclean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) \
		| awk -F ':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'
	@echo "  PYTHON=...      the Python (3.11 or newer) that makes .venv; default: python3"

book: repro html ## run what has changed in the pipeline, then build the book
	@$(IN_VENV) python -m pipeline.summary $(EXPERIMENT)

verify: environment ## rerun an experiment from scratch in a copy, and compare; EXPERIMENT=... names another one
	@$(IN_VENV) python -m pipeline.verify $(if $(EXPERIMENT),--experiment $(EXPERIMENT))

repro: environment ## run only what has changed in the pipeline; EXPERIMENT=... names another one
	$(IN_VENV) python -m pipeline.params
	$(IN_VENV) python -m pipeline.stages --check
	$(IN_VENV) python -m pipeline.repro --first $(EXPERIMENT)
	$(IN_VENV) python -m pipeline.readme

# Sphinx reads only changed pages, and so would not repeat the warnings of a page that it has read.
# Therefore the next build after a failure starts from scratch.
html: environment ## build the book from the results as they are; warnings are errors
	@$(IN_VENV) jupyter-book build --quiet --warningiserror --keep-going book \
		|| { rm -rf book/_build/.doctrees; exit 1; }
	@echo "The book: $(CURDIR)/$(FIRST_PAGE)"

test: lint ## lint, and run all tests
	$(IN_VENV) python -m pytest

coverage: lint ## run all tests, and report the lines of irevnet/ and pipeline/ that none of them runs
	$(IN_VENV) python -m pytest --cov --cov-report=term:skip-covered --cov-report=html

lint: environment ## only the checks that take seconds
	$(IN_VENV) ruff check
	$(IN_VENV) ruff format --check
	$(IN_VENV) codespell
	$(IN_VENV) mypy
	$(IN_VENV) python -m pipeline.strip_notebooks --check
	$(IN_VENV) python -m pipeline.params
	$(IN_VENV) python -m pipeline.stages --check
	$(IN_VENV) python -m pipeline.readme --check

lab: environment ## open the notebooks in JupyterLab
	$(IN_VENV) jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

# Not a stage of the pipeline: its numbers depend on the machine, on which nothing else should run.
bench: environment ## measure speed and memory on this machine (about 5 minutes on 2 cores)
	$(IN_VENV) python -m benchmarks.memory_and_speed $(BENCH)

pdf: environment ## print the book's pages into one PDF; needs Chromium
	@$(IN_VENV) python -m pipeline.pdf

links: environment ## check that the book's links work; needs the network
	$(IN_VENV) jupyter-book build --quiet --builder linkcheck book

dist: environment ## make the files of a release: wheel, source distribution, weights, and the PDF if it exists
	rm -rf dist
	$(IN_VENV) hatchling build
	git archive --output dist/irevnet-weights.zip HEAD $(wildcard results/*/weights)
	@cp book/_build/pdf/*.pdf dist 2>/dev/null || echo "There is no PDF of the book"

hooks: environment ## make git run the checks of .pre-commit-config.yaml before each commit
	$(IN_VENV) pre-commit install

# Versions that still fit are kept; `make lock UPGRADE=--upgrade` takes the newest of all.
lock: ## rewrite requirements.lock from pyproject.toml (needs uv)
	@command -v $(UV) >/dev/null || { \
		echo "make lock needs uv (python3 -m pip install uv), or UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --all-extras --group build --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --quiet $(UPGRADE) --output-file requirements.lock

# Uses the Python of .venv if there is one; then a missing PYTHON does not matter.
environment: ## make .venv, or remake it if requirements.lock has changed
	@for python in $(VENV)/bin/python "$(PYTHON)"; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		exec "$$python" -I pipeline/environment.py --python "$(PYTHON)" $(REMOVE); \
	done; \
	echo "Python 3.11 or newer is needed, but '$(PYTHON)' is: $$("$(PYTHON)" --version 2>&1)." >&2; \
	echo "Name another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1

clean: ## remove the built book and caches; keep .venv and the results
	rm -rf book/_build .pytest_cache .ruff_cache .mypy_cache .coverage htmlcov
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +

distclean: REMOVE := --remove
distclean: clean environment ## clean, and remove .venv
