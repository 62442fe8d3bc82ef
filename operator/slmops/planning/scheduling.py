# SPDX-License-Identifier: Apache-2.0
"""Which nodes the pods may run on, as far as it is written into them."""

from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import LabelSelector
from slmops.api.spec import Variant

Body = dict[str, Any]
HOSTNAME: Final = "kubernetes.io/hostname"

_OFFLINE_TOLERATIONS: Final[tuple[Body, ...]] = tuple(
    # Without a time limit: an edge node that lost its link goes on serving, and its pod must still be
    # there when the link comes back.
    {"key": f"node.kubernetes.io/{condition}", "operator": "Exists", "effect": "NoExecute"}
    for condition in ("not-ready", "unreachable")
)


def build_scheduling(spec: SLMDeploymentSpec, variant: Variant, *, pods: Body) -> Body:
    """Fields of a pod's spec; `pods` are the labels of all serving pods.

    The pods of a node wait for their node. Replicas are left to Kubernetes, which moves them after five
    minutes, and are spread over the nodes that the variant suits.
    """
    tolerations = [toleration.to_body() for toleration in spec.placement.tolerations]
    if spec.placement.mode == "PerNode":
        return {"tolerations": [*_OFFLINE_TOLERATIONS, *tolerations]}
    spread = {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pods},
    }
    requirements = [
        *selector_requirements(spec.placement.node_selector),
        *selector_requirements(variant.node_selector),
    ]
    return {
        "tolerations": tolerations,
        "topologySpreadConstraints": [spread],
        **require_nodes({}, requirements),
    }


def require_nodes(pod_spec: Body, requirements: list[Body]) -> Body:
    """The pod's spec with further requirements on the labels of its node; all must hold."""
    if not requirements:
        return pod_spec  # a term without requirements would select no node at all
    present: list[Body] = []
    if "affinity" in pod_spec:
        required = pod_spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        present = required["nodeSelectorTerms"][0]["matchExpressions"]
    term = {"matchExpressions": [*present, *requirements]}
    affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {**pod_spec, "affinity": {"nodeAffinity": affinity}}


def label_in(key: str, value: str) -> Body:
    """Requirement: the node's label has this value."""
    return {"key": key, "operator": "In", "values": [value]}


def selector_requirements(selector: LabelSelector) -> list[Body]:
    """What a label selector asks of a node's labels."""
    equal = [label_in(key, value) for key, value in sorted(selector.match_labels.items())]
    others = [
        {"key": entry.key, "operator": entry.operator, **({"values": entry.values} if entry.values else {})}
        for entry in selector.match_expressions
    ]
    return [*equal, *others]
