# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
FUZZ ?= 50
UV_VERSION := 0.13.9
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/slmops
COMPILE := .venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11
PYTEST := $(PY) -m pytest
# Real processes race: what fails is tried once more, at most three tests of a suite, and said with its traceback.
AGAIN := --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks
export PYTHONPATH := operator:.
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

##@ The two commands

.PHONY: demo
demo: venv ## the main job on real nodes: install, promote a better version, roll back a bad one
	$(PY) -m e2e.demo

.PHONY: test
test: check unit apiserver e2e ## everything: checks and all test suites

##@ Parts of them

.PHONY: check
check: venv ## lint, types, layers, drift of generated files, chart, scenarios
	.venv/bin/ruff format --check --quiet .
	.venv/bin/ruff check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m e2e.checks

.PHONY: unit
unit: venv ## pure tests, no cluster
	$(PYTEST) $(AGAIN) -n auto tests/unit

.PHONY: apiserver
apiserver: venv ## the control loop on a real kube-apiserver, and the fleet page in a real browser
	@command -v chromium >/dev/null || $(PY) -m e2e.rig packages
	$(PYTEST) $(AGAIN) -n auto --dist worksteal tests/apiserver

.PHONY: e2e
e2e: venv ## real nodes, containers, Prometheus, faults
	$(PYTEST) $(AGAIN) e2e/suite

.PHONY: bench
bench: venv ## benchmarks beside their peers; writes docs/benchmarks/*.json and docs/benchmarks.md
	@missed=; for name in serve rollout fleet fetch warm evidence simulate planner quality; do \
	  echo "$(PY) -m e2e.bench.$$name"; $(PY) -m e2e.bench.$$name || missed="$$missed $$name"; \
	done; $(PY) -m e2e.bench.render; \
	test -z "$$missed" || { echo "targets missed, or not measured to the end:$$missed"; exit 1; }

.PHONY: torch-image
torch-image: venv ## build the optimizer's image with torch (gigabytes) and convert models in it
	$(PY) -m e2e.torch_image

.PHONY: fuzz
fuzz: venv ## the fuzz tests with FUZZ times their examples, drawn anew (make fuzz FUZZ=1000 for a night)
	SLMOPS_FUZZ=$(FUZZ) $(PYTEST) -n auto --dist worksteal --timeout 0 $(wildcard tests/unit/*/test_*fuzz*.py)

.PHONY: quality
quality: venv ## what each way to shrink a model costs in quality; writes the table in docs/optimise.md
	$(PY) -m e2e.bench.quality

.PHONY: model
model: venv ## train and export the test models again and check their figures (needs torch, gigabytes)
	test -x $(CACHE)/model-venv/bin/python || python3 -m venv $(CACHE)/model-venv
	.venv/bin/uv pip sync --quiet --require-hashes --python $(CACHE)/model-venv/bin/python locks/model.txt
	nice -n 5 $(CACHE)/model-venv/bin/python -m e2e.models.recipe make --check

.PHONY: model-litert
model-litert: venv ## export the test model for LiteRT again (needs torch, gigabytes)
	test -x $(CACHE)/litert-venv/bin/python || python3 -m venv $(CACHE)/litert-venv
	.venv/bin/uv pip sync --quiet --require-hashes --python $(CACHE)/litert-venv/bin/python locks/model-litert.txt
	nice -n 5 $(CACHE)/litert-venv/bin/python -m e2e.models.recipe.export_litert

.PHONY: pictures
pictures: venv ## take the pictures of docs/fleet-page.md again
	@command -v chromium >/dev/null || $(PY) -m e2e.rig packages
	$(PYTEST) tests/apiserver/page_pictures.py

.PHONY: sbom
sbom: venv ## bills of materials of the two images, CycloneDX 1.6, in build/sbom
	$(PY) -m e2e.sbom

.PHONY: down
down: venv ## stop the rig that demo and e2e leave up
	$(PY) -m e2e.rig down

##@ Upkeep

.PHONY: generate
generate: venv ## write what is generated from the API: crds, chart copy, manifests, docs/reference.md
	$(PY) -m e2e.checks --write
	.venv/bin/ruff format --quiet .

.PHONY: venv
venv: .venv/.stamp ## Python environment in .venv, from the hashed lock

.venv/.stamp: locks/dev.txt locks/uv.txt
	python3 -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --require-hashes -r locks/uv.txt
	.venv/bin/uv pip sync --quiet --require-hashes locks/uv.txt locks/dev.txt
	touch $@

.PHONY: lock
lock: venv ## compile locks/*.txt from pyproject.toml
	$(COMPILE) --extra operator pyproject.toml -o locks/operator.txt
	$(COMPILE) --extra runtime pyproject.toml -o locks/runtime.txt
	$(COMPILE) --extra runtime-llama-cpp pyproject.toml -c locks/runtime.txt -o locks/runtime-llama-cpp.txt
	# Without what runtime.txt has already, and without the telemetry that the library can do without.
	$(COMPILE) --extra runtime-openvino pyproject.toml -c locks/runtime.txt --no-emit-package numpy \
	  --no-emit-package openvino-telemetry -o locks/runtime-openvino.txt
	$(COMPILE) --extra runtime-litert pyproject.toml -c locks/runtime.txt --no-emit-package numpy \
	  -o locks/runtime-litert.txt
	# Without what its export commands read their settings with, which comes as source code only.
	$(COMPILE) --extra runtime-executorch pyproject.toml -c locks/runtime.txt --no-emit-package hydra-core \
	  --no-emit-package omegaconf --no-emit-package antlr4-python3-runtime -o locks/runtime-executorch.txt
	$(COMPILE) --extra optimizer pyproject.toml -o locks/optimizer.txt
	# Apart from the rest: litert-torch and model-signing want different versions of one package.
	$(COMPILE) --extra optimizer-torch pyproject.toml -o locks/optimizer-torch.txt
	$(COMPILE) --extra operator --extra runtime --extra cli --extra optimizer --extra dev pyproject.toml -o locks/dev.txt
	$(COMPILE) locks/model.in -o locks/model.txt
	$(COMPILE) locks/model-litert.in -o locks/model-litert.txt
	echo "uv==$(UV_VERSION)" | $(COMPILE) - -o locks/uv.txt
