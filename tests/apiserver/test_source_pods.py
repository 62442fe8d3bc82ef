# SPDX-License-Identifier: Apache-2.0
"""The pods of every kind of source on a real API server: no field is unknown, dropped or refused."""

import json
from typing import Any

import pytest
import yaml

from e2e.rig import ControlPlane
from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved
from slmops.planning import build
from slmops.planning.names import Names
from slmops.planning.revision import build_revision_data, parse_revision
from slmwire.manifest import Manifest, ManifestFile

pytestmark = pytest.mark.usefixtures("control_plane")

REFERENCE = "registry.example.com/chat@sha256:" + "1" * 64
FILES = [{"path": "a", "size": 1, "sha256": "0" * 64}]
OCI = {"image": "registry.example.com/chat:1", "pullSecretRef": {"name": "login"}}
SOURCES: list[dict[str, Any]] = [
    {"http": {"url": "https://x/m.json", "basicAuthRef": {"name": "login"}}},
    {"hf": {"repo": "a/b", "secretRef": {"name": "hub"}}},
    {"oci": OCI},
    {"oci": OCI | {"delivery": "ImageVolume", "path": "models"}},
    {"s3": {"bucket": "models", "prefix": "a/", "secretRef": {"name": "keys"}}},
    {"pvc": {"claimName": "models", "files": FILES}},
    {"file": {"path": "/srv/models", "files": FILES}},
]


def daemon_sets(source: dict[str, Any]) -> list[dict[str, Any]]:
    names = Names("default", "chat")
    spec = SLMDeploymentSpec.model_validate(
        {
            "model": {"name": "chat", "version": "1"},
            "variants": [{"name": "int4", "source": source}],
            "placement": {"nodeSelector": {}},
        }
    )
    manifest = Manifest(files=(ManifestFile(path="a", size=1, sha256="0" * 64),))
    templates = build.build_templates(
        names,
        spec,
        config=OperatorConfig(runtime_image="runtime:1"),
        revision="0123456789",
        digests={"int4": manifest.digest},
        references={"int4": REFERENCE},
    )
    resolved = {"int4": Resolved(manifest=manifest, reference=REFERENCE)}
    revision = parse_revision(
        "0123456789", 1, build_revision_data(spec, resolved=resolved, templates=templates)
    )
    (variant,) = revision.variants
    return [
        build.build_serve_daemon_set(names, revision, variant),
        build.build_prefetch_daemon_set(names, revision, variant),
    ]


def kept(wanted: Any, stored: Any, path: str) -> list[str]:
    """Where `stored` lacks or differs from what was asked for; what the API server adds is fine."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return [
            line for key, value in wanted.items() for line in kept(value, stored.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        pairs = enumerate(zip(wanted, stored, strict=True))
        return [line for index, (a, b) in pairs for line in kept(a, b, f"{path}[{index}]")]
    return [] if wanted == stored or (wanted in ("", {}) and stored is None) else [f"{path}: {stored!r}"]


@pytest.mark.parametrize(
    "source", SOURCES, ids=[f"{next(iter(s))}-{index}" for index, s in enumerate(SOURCES)]
)
def test_pods_are_stored_as_they_were_made(control_plane: ControlPlane, source: dict[str, Any]) -> None:
    for body in daemon_sets(source):
        text = control_plane.kubectl(
            "create",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
            "-o",
            "yaml",
            stdin=json.dumps(body),
        )
        assert kept(body["spec"], yaml.safe_load(text)["spec"], "spec") == []
