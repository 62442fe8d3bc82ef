# SPDX-License-Identifier: Apache-2.0
"""Environment variables that the operator sets on the pods it makes."""

from typing import Final

NAMESPACE: Final = "SLM_NAMESPACE"
DEPLOYMENT: Final = "SLM_DEPLOYMENT"
REVISION: Final = "SLM_REVISION"
VARIANT: Final = "SLM_VARIANT"
MODEL: Final = "SLM_MODEL"
"""Model name that the API serves (`model` in requests, `id` in /v1/models)."""
MODEL_VERSION: Final = "SLM_MODEL_VERSION"
NODE: Final = "SLM_NODE"

# Server
MODEL_DIR: Final = "SLM_MODEL_DIR"
MODEL_DIGEST: Final = "SLM_MODEL_DIGEST"
"""`sha256:<hex>`: manifest digest that the loaded directory must match."""
PORT: Final = "SLM_PORT"
THREADS: Final = "SLM_THREADS"
SLOTS: Final = "SLM_SLOTS"
CONTEXT_LENGTH: Final = "SLM_CONTEXT_LENGTH"
"""Tokens per slot, prompt and answer together; 0 means the model's own limit."""
MAX_QUEUE: Final = "SLM_MAX_QUEUE"
EVALUATE: Final = "SLM_EVALUATE"
"""`true` (default) runs golden.jsonl before ready when the model has one; `false` does not."""
DRAIN_SECONDS: Final = "SLM_DRAIN_SECONDS"

# Fetcher
STORE_DIR: Final = "SLM_STORE_DIR"
MANIFEST_FILE: Final = "SLM_MANIFEST_FILE"
SIZE_LIMIT_BYTES: Final = "SLM_SIZE_LIMIT_BYTES"
"""Most bytes the store may hold; 0 means only the file system limits it."""
KEEP_PREVIOUS: Final = "SLM_KEEP_PREVIOUS"
"""How many earlier revisions of this deployment stay pinned in the store."""
SOURCE_TOKEN_FILE: Final = "SLM_SOURCE_TOKEN_FILE"
"""File with a bearer token for the source; absent or empty means anonymous."""
CA_FILE: Final = "SLM_CA_FILE"
"""PEM file with further certificate authorities to trust for sources."""
READY_FILE: Final = "SLM_READY_FILE"
