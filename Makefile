# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
UV_VERSION := 0.13.9
export PYTHONPATH := operator:.
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.stamp: locks/dev.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet uv==$(UV_VERSION)
	.venv/bin/uv pip sync --quiet --require-hashes locks/uv.txt locks/dev.txt
	touch $@

.PHONY: venv
venv: .venv/.stamp ## Python environment in .venv, from the hashed lock

.PHONY: lock
lock: ## compile locks/*.txt from pyproject.toml
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra operator pyproject.toml -o locks/operator.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra runtime pyproject.toml -o locks/runtime.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra operator --extra runtime --extra dev pyproject.toml -o locks/dev.txt
	echo "uv==$(UV_VERSION)" | .venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 - -o locks/uv.txt
