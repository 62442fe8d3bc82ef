# SPDX-License-Identifier: Apache-2.0
"""SLMDeployment manifests for the model `orders` in e2e/models."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from e2e.rig.paths import CHECKOUT

MODELS: Final = CHECKOUT / "e2e" / "models"
MODEL: Final = "orders"
FOLDER: Final = "orders"
"""Where the model lies, below MODELS and on the web server."""
API_VERSION: Final = "slmops.dev/v1alpha1"
EDGE: Final = {"matchLabels": {"slmops.dev/edge": "true"}}
PILOT_WAVE: Final = {"name": "pilot", "nodeSelector": {"matchLabels": {"slmops.dev/ring": "pilot"}}}
WAVES: Final = (PILOT_WAVE, {"name": "half", "percent": 66}, {"name": "all", "percent": 100})
"""One pilot node, then two of three, then all of the rig's default three edge nodes."""

Json = dict[str, Any]


def model_dir(version: str, *, variant: str = "int4") -> Path:
    """Folder of one variant of one version of the model."""
    return MODELS / FOLDER / f"{version}-{variant}"


def http_source(models_url: str, version: str, *, variant: str = "int4") -> Json:
    """Source of a variant on the web server at `models_url`, pinned by its manifest's hash."""
    manifest = model_dir(version, variant=variant) / "slm-manifest.json"
    return {
        "http": {
            "url": f"{models_url}/{FOLDER}/{version}-{variant}/slm-manifest.json",
            "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        }
    }


def golden_cases(version: str = "v1", *, variant: str = "int4") -> list[Json]:
    """The golden set: [{"messages": [...], "expected": "...", "match": "json"}, ...]."""
    lines = (model_dir(version, variant=variant) / "golden.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def build_deployment(
    name: str,
    *,
    models_url: str,
    namespace: str = "default",
    version: str = "v1",
    variant: str = "int4",
    memory: str = "128Mi",
    nodes: Json | None = None,
    rollout: Json | None = None,
    cache: Json | None = None,
    runtime: Json | None = None,
    service: Json | None = None,
) -> Json:
    """An SLMDeployment of `orders` on the edge nodes, with short times; mappings replace default keys."""
    waves = [dict(wave) for wave in WAVES]
    default_rollout: Json = {
        "waves": waves,
        "maxUnavailable": "50%",
        "soak": "3s",
        "progressDeadline": "5m",
        "analysis": {
            "interval": "2s",
            "passes": 2,
            "metrics": [
                {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"},
                {
                    "name": "errors", "preset": "ErrorRate", "maxDegradation": "0.02", "minSamples": 5,
                    "required": False,
                },
            ],
        },
    }  # fmt: skip
    spec: Json = {
        "model": {"name": MODEL, "version": version},
        "variants": [
            {
                "name": variant,
                "source": http_source(models_url, version, variant=variant),
                "resources": {"requests": {"cpu": "50m", "memory": memory}},
            }
        ],
        "placement": {"nodeSelector": nodes or EDGE},
        "runtime": {"threads": 1} | (runtime or {}),
        "rollout": default_rollout | (rollout or {}),
    }
    if cache is not None:
        spec["cache"] = cache
    if service is not None:
        spec["service"] = service
    return {
        "apiVersion": API_VERSION,
        "kind": "SLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
