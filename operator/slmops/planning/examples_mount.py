# SPDX-License-Identifier: Apache-2.0
"""What the pods of a site that adapts the model have beside those of others: the folder of examples.

The fetcher, which is root without capabilities, makes the folder and gives it to the server's group.
"""

from typing import Any, Final

from slmops.api.spec import Variant
from slmops.planning.adapters import default_adapter
from slmops.planning.effective import EffectiveVariant, Examples
from slmops.planning.names import Names
from slmops.planning.revision import RevisionVariant
from slmwire import env, paths
from slmwire.examples import SERVER_GROUP, ExampleSettings

Body = dict[str, Any]
_SERVER: Final = "server"
_FETCHER: Final = "fetch"


def default_env(variant: Variant) -> list[Body]:
    """Variable of the server that names the default adapter; none without one."""
    name = default_adapter(variant)
    return [{"name": env.DEFAULT_ADAPTER, "value": name}] if name else []


def with_examples(names: Names, variant: Variant, template: Body) -> Body:
    """The pod template, serving or prefetching, with the folder; unchanged where nothing is kept."""
    kept = variant.examples if isinstance(variant, EffectiveVariant) else None
    if kept is None:
        return template
    pod = template["spec"]
    changed = {
        **pod,
        "securityContext": {**pod["securityContext"], "supplementalGroups": [SERVER_GROUP]},
        "containers": [_with_folder(names, kept, container) for container in pod["containers"]],
    }
    if "initContainers" in pod:
        changed["initContainers"] = [_with_folder(names, kept, c) for c in pod["initContainers"]]
    return {**template, "spec": changed}


def _with_folder(names: Names, kept: Examples, container: Body) -> Body:
    if container["name"] not in (_SERVER, _FETCHER):
        return container
    settings = ExampleSettings(
        retention_seconds=kept.retention_seconds,
        max_examples=kept.max_examples,
        redact=tuple(kept.redact),
        patterns=tuple(kept.patterns),
    )
    told = [
        {"name": env.EXAMPLES_DIR, "value": paths.EXAMPLES_DIR},
        {"name": env.EXAMPLES, "value": settings.to_json()},
    ]
    changed = {**container, "env": [*container["env"], *told]}
    if container["name"] == _SERVER:
        folder = paths.examples_subpath(names.namespace, names.name)
        mount = {"name": "store", "mountPath": paths.EXAMPLES_DIR, "subPath": folder}
        changed["volumeMounts"] = [*container["volumeMounts"], mount]
    return changed


def server_of(variant: RevisionVariant) -> Body:
    """The container that serves, of a stored revision; empty for a template that has none."""
    containers = variant.serve_template["spec"]["containers"]
    return next((dict(c) for c in containers if c.get("name") == _SERVER), {})


def keeps_examples(variant: RevisionVariant) -> bool:
    """Whether the servers of a stored variant keep examples, so that an adapter can be trained for it."""
    return any(entry.get("name") == env.EXAMPLES_DIR for entry in server_of(variant).get("env", ()))
