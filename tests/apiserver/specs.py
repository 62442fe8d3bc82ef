# SPDX-License-Identifier: Apache-2.0
"""A small valid SLMDeployment, and changes to it by path."""

import copy
from typing import Any

from slmops.api import API_VERSION, KIND


def deployment(name: str = "orders", *, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """An SLMDeployment that says no more than it must; `spec` replaces whole top-level fields."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "orders", "version": "v1"},
            "variants": [{"name": "int4", "source": {"http": {"url": "https://models.example.com/m.json"}}}],
            "placement": {"nodeSelector": {"matchLabels": {"slmops.dev/edge": "true"}}},
        }
        | spec,
    }


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the field at `path` (`spec.variants.0.name`) set; missing maps on the way are made."""
    result = copy.deepcopy(body)
    *way, last = path.split(".")
    here: Any = result
    for part in way:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    if isinstance(here, list):
        here[int(last)] = value
    else:
        here[last] = value
    return result
