# SPDX-License-Identifier: Apache-2.0
"""What an SLMDeployment's objects say, as text for logs and failure messages: pure functions."""

from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]


def condition(resource: Json, kind: str) -> Json:
    """The condition of that type; an empty mapping when there is none."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def is_true(resource: Json, kind: str) -> bool:
    """Whether the condition of that type is True."""
    return condition(resource, kind).get("status") == "True"


def rollout_of(resource: Json) -> Json:
    """status.rollout; empty before the first."""
    return resource.get("status", {}).get("rollout") or {}


def label_prefix(namespace: str, name: str) -> str:
    """Prefix of a deployment's node labels."""
    return f"{name}.{namespace}.slmops.dev/"


def assignments(nodes: Iterable[Json], *, prefix: str) -> dict[str, dict[str, str]]:
    """Per node its labels of one deployment, prefix cut off; nodes without any are left out."""
    result = {}
    for node in nodes:
        labels = node["metadata"].get("labels", {})
        own = {key.removeprefix(prefix): value for key, value in labels.items() if key.startswith(prefix)}
        if own:
            result[node["metadata"]["name"]] = own
    return result


def describe_resource(resource: Json) -> str:
    """Conditions, rollout, waves and measurements in lines."""
    status = resource.get("status", {})
    lines = [
        f"{resource['metadata']['name']}: generation {resource['metadata'].get('generation')}, observed "
        f"{status.get('observedGeneration')}, stable {status.get('stableRevision')!r}, update "
        f"{status.get('updateRevision')!r}, nodes {status.get('nodes')}"
    ]
    lines += [
        f"  {c['type']}={c['status']} {c['reason']}: {c['message']}" for c in status.get("conditions", [])
    ]
    rollout = rollout_of(resource)
    if rollout:
        lines.append(
            f"  rollout {rollout['revision']} {rollout['step']} wave {rollout.get('wave')} since "
            f"{rollout.get('stepStartedAt')} {rollout.get('reason', '')} {rollout.get('message', '')}"
        )
        lines += [f"    wave {wave}" for wave in rollout.get("waves", [])]
        lines += [f"    metric {metric}" for metric in rollout.get("metrics", [])]
        lines += [f"    {measurement}" for measurement in rollout.get("measurements", [])[-6:]]
    lines += [f"  adapts {site}" for site in (status.get("adaptation") or {}).get("sites", [])]
    lines += [f"  rule {rule}" for rule in (status.get("feedback") or {}).get("rules", [])]
    lines += [f"  problem {problem}" for problem in status.get("worstNodes", [])]
    lines += [f"  failed {failed}" for failed in status.get("failedRevisions", [])]
    return "\n".join(lines)


def describe_pods(pods: Iterable[Json]) -> str:
    """One line for each pod with what its containers say."""
    lines = []
    for pod in pods:
        status = pod.get("status", {})
        containers = [
            f"{c['name']}: ready={c['ready']} restarts={c['restartCount']} {c.get('state')}"
            for c in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        ]
        lines.append(
            f"  pod {pod['metadata']['name']} on {pod['spec'].get('nodeName')} {status.get('phase')} "
            f"{'deleting ' if pod['metadata'].get('deletionTimestamp') else ''}{'; '.join(containers)}"
        )
    return "\n".join(lines)
