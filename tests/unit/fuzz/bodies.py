# SPDX-License-Identifier: Apache-2.0
"""Valid bodies to start from, and the schemas that the API server checks with."""

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.unit.fuzz.grammar import Body
from tests.unit.planning import fleet_spec, model_sim

ROOT: Final = Path(__file__).parents[3]


@cache
def schema_of(kind: str) -> Any:
    """The OpenAPI schema of a kind's CustomResourceDefinition."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        body = yaml.safe_load(path.read_text())
        if body["spec"]["names"]["kind"] == kind:
            return body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    raise LookupError(kind)


@cache
def specs_of(kind: str) -> tuple[Body, ...]:
    """Specs of a kind from the examples and the documentation, and one of the planner's tests."""
    texts = [path.read_text() for path in sorted((ROOT / "manifests/examples").glob("*.yaml"))]
    for path in sorted((ROOT / "docs").glob("*.md")):
        texts += re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    found = [
        document["spec"]
        for text in texts
        for document in yaml.safe_load_all(text)
        if isinstance(document, dict) and document.get("kind") == kind
    ]
    own = {"SLMDeployment": fleet_spec.spec_body(), "SLMModel": model_sim.spec_body()}
    return (*found, own[kind]) if kind in own else tuple(found)
