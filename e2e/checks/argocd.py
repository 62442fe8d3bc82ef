# SPDX-License-Identifier: Apache-2.0
"""What users of Argo CD take from manifests/argocd: the health scripts, Applications, site overlays."""

from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator

from e2e.checks.check import Check, CheckError
from e2e.checks.helm import objects, render_chart
from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import run
from e2e.rig.tools import tool
from slmops.api.kinds import KINDS as KINDS_OF_API

FOLDER: Final = CHECKOUT / "manifests" / "argocd"
HEALTH: Final = FOLDER / "health"
CONFIG_MAP: Final = FOLDER / "argocd-cm.yaml"
SYNC_OPTIONS: Final = "argocd.argoproj.io/sync-options"
SCRIPTED: Final = ("SLMDeployment", "SLMModel")
"""Kinds with a health script; a DeviceProfile has no status and is healthy when it exists."""
_HEAD: Final = """\
# SPDX-License-Identifier: Apache-2.0
# Generated from health/*.lua by `make generate`; do not edit. Adds two keys to the ConfigMap of your Argo CD:
#   kubectl apply --server-side --field-manager=slmops -n argocd -f argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
  labels:
    app.kubernetes.io/name: argocd-cm
    app.kubernetes.io/part-of: argocd
data:
"""


def read_script(kind: str) -> str:
    """The health script of a kind."""
    return (HEALTH / f"{kind}.lua").read_text()


def render_config_map() -> str:
    """The part of ConfigMap argocd-cm that holds the scripts."""
    text = _HEAD
    for kind in SCRIPTED:
        text += f"  resource.customizations.health.slmops.dev_{kind}: |\n"
        text += "".join(f"    {line}".rstrip() + "\n" for line in read_script(kind).splitlines())
    return text


def check_applications() -> str:
    """The Application of the operator fits the chart, and every site renders to what the API takes."""
    values = objects((FOLDER / "operator.yaml").read_text())[0]["spec"]["source"]["helm"]["valuesObject"]
    for body in objects(render_chart(values)):
        marks = body["metadata"].get("annotations", {})
        if body["kind"] == "CustomResourceDefinition" and marks.get(SYNC_OPTIONS) != "Prune=false":
            name = body["metadata"]["name"]
            raise CheckError(f"Argo CD would prune {name} and all objects of it; set {SYNC_OPTIONS}")
    sites = sorted(path.parent for path in (FOLDER / "models").glob("*/**/kustomization.yaml"))
    schemas = {kind.kind: _spec_schema(kind.file_name) for kind in KINDS_OF_API}
    count = 0
    for site in sites:
        for body in objects(run([str(tool("kustomize")), "build", str(site)]).stdout):
            error = next(schemas[body["kind"]].iter_errors(body["spec"]), None)
            if error is not None:
                raise CheckError(f"{site.relative_to(CHECKOUT)}: spec.{error.json_path[2:]}: {error.message}")
            count += 1
    return f"{count} objects of {len(sites)} folders in manifests/argocd/models fit their schemas"


def _spec_schema(file_name: str) -> Draft202012Validator:
    """Validator of spec; of the rules in CEL the API server alone knows more."""
    crd = yaml.safe_load((CHECKOUT / "crds" / file_name).read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """The schema as strict field validation reads it: a field that it does not name is none."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


CHECKS: Final = (Check(name="Argo CD", run=check_applications),)
