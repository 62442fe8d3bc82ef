# SPDX-License-Identifier: Apache-2.0
"""Specs and sources for tests of the planner."""

import hashlib
from collections.abc import Mapping
from typing import Any

from slmwire.manifest import Manifest, ManifestFile

GIB = 1 << 30


def manifest_of(url: str) -> Manifest:
    """The one file behind a URL."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return Manifest(
        files=(ManifestFile(path="model.onnx", size=1000, sha256=digest, url=f"{url}/model.onnx"),)
    )


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` merged into `old`, as a merge patch does, without deletion."""
    result = dict(old)
    for key, value in new.items():
        present = result.get(key)
        result[key] = (
            merged(present, value) if isinstance(value, dict) and isinstance(present, dict) else value
        )
    return result


def spec_body(
    *,
    version: str = "v1",
    memory: str = "1Gi",
    waves: list[dict[str, Any]] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    **rollout: Any,
) -> dict[str, Any]:
    """A spec for nodes labelled `slm=yes`: one wave of one node, then the rest, judged by the quality."""
    return {
        "model": {"name": "orders", "version": version},
        "variants": [
            {
                "name": "int4",
                "source": {"http": {"url": f"http://models/{version}/int4.json"}},
                "resources": {"requests": {"memory": memory, "cpu": "1"}},
            }
        ],
        "placement": {"nodeSelector": {"matchLabels": {"slm": "yes"}}, "siteLabel": "site"},
        "rollout": {
            "waves": waves or [{"name": "canary", "percent": 10}, {"name": "rest", "percent": 100}],
            "soak": "30s",
            "maxUnavailable": 1,
            "analysis": {
                "interval": "10s",
                "passes": 2,
                "metrics": metrics
                or [{"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"}],
            },
            **rollout,
        },
    }
