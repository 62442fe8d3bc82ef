# SPDX-License-Identifier: Apache-2.0
"""Paths inside the pods, HTTP paths and ports."""

from typing import Final

STORE_DIR: Final = "/store"
"""Where the fetcher mounts the node's model store, writable."""
MODEL_DIR: Final = "/model"
"""Where the server mounts one revision's tree, read-only."""
MANIFEST_FILE: Final = "/etc/slmops/manifest.json"
ENGINE_CHOICE_FILE: Final = "/choice/engine.json"
"""Where the server finds which engine was measured to suit the model on this device; may be absent."""
SOURCE_DIR: Final = "/etc/slmops-source"
"""Where the fetcher finds the source's credentials, one file each: `token` (bearer); `username` and
`password` (basic); `accessKeyId`, `secretAccessKey` and perhaps `sessionToken` (s3); `config.json`, a
Docker configuration with `auths` (oci). They are read afresh for every attempt."""
SOURCE_TOKEN_FILE: Final = f"{SOURCE_DIR}/token"
SOURCE_FILES_DIR: Final = "/mnt/slmops-source"
"""Where a volume that holds the source's files is mounted, read-only (pvc, image volume)."""
DISTRIBUTION_FILE: Final = "/etc/slmops-distribution/distribution.json"
CHOICE_DIR: Final = "/choice"
"""Where the server finds what the init container `choose` has found out, with the engine `auto`."""
CHOICE_FILE: Final = f"{CHOICE_DIR}/engine.json"
API_KEYS_DIR: Final = "/etc/slmops-keys"
"""Where the server finds the API keys, a folder that the kubelet renews."""
API_KEYS_FILE: Final = f"{API_KEYS_DIR}/keys"
TLS_DIR: Final = "/etc/slmops-tls"
"""Where the server finds its certificate, a folder that the kubelet renews."""
TLS_CERT_FILE: Final = f"{TLS_DIR}/tls.crt"
TLS_KEY_FILE: Final = f"{TLS_DIR}/tls.key"
READY_FILE: Final = "/tmp/ready"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LIMIT_BYTES: Final = 4096

DEFAULT_STORE_PATH: Final = "/var/lib/slmops"
"""Folder of the node that holds the model store, unless said otherwise."""
AGENT_PORT: Final = 8491
"""Port of the store agent on each node."""
AGENT_BLOBS: Final = "/v1/blobs/sha256/"
"""Followed by 64 hexadecimal digits: a blob, whole or as far as it has come."""
AGENT_STORE: Final = "/v1/store"
"""JSON: what the node's store holds."""

EXAMPLES_DIR: Final = "/examples"
"""Where the server mounts the folder of its deployment's examples, writable."""

HTTP_PORT: Final = 8080
PATH_CHAT: Final = "/v1/chat/completions"
KEY_HEADER: Final = "api-key"
"""Header with a client's key, in place of `Authorization: Bearer`."""
PATH_HEALTH: Final = "/healthz"
PATH_READY: Final = "/readyz"
PATH_METRICS: Final = "/metrics"

GOLDEN_FILE: Final = "golden.jsonl"
MODEL_MANIFEST_FILE: Final = "slm-manifest.json"


def tree_subpath(digest: str) -> str:
    """Path of a manifest's tree below the store's root; `digest` is `sha256:<hex>`."""
    return f"trees/{digest.removeprefix('sha256:')}"


def examples_subpath(namespace: str, name: str) -> str:
    """Folder of an SLMDeployment's examples below the store's root."""
    return f"examples/{namespace}/{name}"
