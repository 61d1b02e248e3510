# Two commands do all the set-up: `make demo` and `make test`. `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# what `make dist` is made of: by default the weights of the demonstration, and the figures that lie beside weights
ifeq ($(CT)$(WSI),)
CT := $(wildcard demo/output/ct/smooth/model.pt)
WSI := $(wildcard demo/output/wsi/smooth/model.pt)
endif
METRICS = $(if $(wildcard $(dir $(1))metrics.json),--metrics "$(dir $(1))metrics.json")

.DEFAULT_GOAL := help
.PHONY: help demo test check soak label-test zoo-check coverage bench reproduce docs dist lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

.venv/ready: requirements.txt requirements-dev.txt constraints.txt
	@echo "Installing what the project needs into .venv (once; about two minutes without a word) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target .venv/older monai==1.5.2  # the oldest that is tested
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target .venv/deploy monai-deploy-app-sdk==4.0.0  # its operator alone
	@touch $@

demo: .venv/ready  ## make data, train, evaluate and infer with both bundles, and write demo/output/index.html
	@$(BIN)/python -m demo run

check: .venv/ready  ## style, types and the fast tests: the loop while working
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 2 -m "not slow and not soak"

test: lint  ## lint, types, every test and the real bundle commands
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

soak: .venv/ready  ## tests of many minutes: trainings killed at random steps, disks that fill
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m soak

.venv-label/ready: requirements-label.txt
	@echo "Installing MONAI Label into .venv-label (once; 3.8 GB, some minutes) ..."
	@test -x .venv-label/bin/python || $(PYTHON) -m venv .venv-label
	@.venv-label/bin/python -m pip install -qq --disable-pip-version-check -r requirements-label.txt
	@touch $@

label-test: .venv-label/ready  ## MONAI Label itself, in an environment of its own: its stock app, ours, a real server, the head CT tests
	@PYTHONPATH=tests/label/shim .venv-label/bin/python -m pytest -q -p no:cacheprovider tests/label; apps=$$?; \
	PYTHONPATH=tests/label/shim .venv-label/bin/python -m pytest -q -p no:cacheprovider tests/ct tests/core --ignore=tests/ct/node \
		--ignore=tests/ct/outputs/test_report.py --ignore=tests/ct/outputs/test_segmentation.py && exit $$apps

coverage: .venv/ready  ## the share of lines that the fast tests reach
	@$(BIN)/python -m pytest -q -n 2 -m "not slow and not soak" --cov --cov-report=term

bench: .venv/ready  ## speed and memory beside torchmil, which it installs into .venv-peers, in benchmarks/results; QUICK=1: slower than kept?
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

reproduce: .venv/ready  ## where the networks find what nobody showed them: hours on public data, goes on after a stop, docs/results.md
	@$(BIN)/python -m benchmarks.ledger

reproduce-%: .venv/ready
	@$(BIN)/python -m benchmarks.ledger $*

.venv/docs-ready: .venv/ready requirements-docs.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-docs.txt -c constraints.txt
	@touch $@

docs: .venv/docs-ready  ## the documentation as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

dist: .venv/ready  ## bundles with trained weights as archives in dist: make dist CT=model.pt WSI=model.pt FLAGS="--trained_on ..."
	@test -n "$(CT)$(WSI)" || { echo "error: give weights, make dist CT=model.pt or WSI=model.pt or both, or make demo first" >&2; exit 1; }
	@test -z "$(CT)" || $(BIN)/python -m scripts release ct --weights "$(CT)" $(call METRICS,$(CT)) $(FLAGS)
	@test -z "$(WSI)" || $(BIN)/python -m scripts release wsi --weights "$(WSI)" $(call METRICS,$(WSI)) $(FLAGS)

zoo-check: .venv/ready  ## what MONAI's model zoo asks of the bundles in dist: make dist zoo-check
	@$(BIN)/python -m zoo.check dist $(ZOO)

lint: .venv/ready  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.house
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layering.py

format: .venv/ready  ## put the sources into the project's form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what the demonstration, the tests and the site made
	rm -rf demo/output site .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
