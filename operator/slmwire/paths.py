# SPDX-License-Identifier: Apache-2.0
"""Paths inside the pods, HTTP paths and ports."""

from typing import Final

STORE_DIR: Final = "/store"
"""Where the fetcher mounts the node's model store, writable."""
MODEL_DIR: Final = "/model"
"""Where the server mounts one revision's tree, read-only."""
MANIFEST_FILE: Final = "/etc/slmops/manifest.json"
SOURCE_TOKEN_FILE: Final = "/etc/slmops-source/token"
READY_FILE: Final = "/tmp/ready"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LIMIT_BYTES: Final = 4096

HTTP_PORT: Final = 8080
PATH_HEALTH: Final = "/healthz"
PATH_READY: Final = "/readyz"
PATH_METRICS: Final = "/metrics"

GOLDEN_FILE: Final = "golden.jsonl"
MODEL_MANIFEST_FILE: Final = "slm-manifest.json"


def tree_subpath(digest: str) -> str:
    """Path of a manifest's tree below the store's root; `digest` is `sha256:<hex>`."""
    return f"trees/{digest.removeprefix('sha256:')}"
