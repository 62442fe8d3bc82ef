# SPDX-License-Identifier: Apache-2.0
"""Asks the serving pods what they have counted."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from slmcli.cost.estimate import YOUNGEST_SECONDS, PodUse
from slmcli.cost.meters import Meter, parse_meter
from slmcli.errors import CliError, ForbiddenError
from slmcli.serving import ServingPod
from slmops.model.observed import NodeView, ProfileView
from slmops.planning.effective import find_rule
from slmops.planning.expand import rank_profiles, rule_of

PARALLEL: Final = 16
Ask = Callable[[ServingPod], str]
"""The text of a pod's /metrics; CliError when it does not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A pod that is to be asked, for a deployment whose sites `site_label` names."""

    deployment: tuple[str, str]
    site_label: str
    pod: ServingPod


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCounted:
    """A pod that the numbers leave out."""

    deployment: tuple[str, str]
    pod: str
    node: str
    why: str


def profiles_of_nodes(nodes: Iterable[NodeView], profiles: Iterable[ProfileView]) -> dict[str, str]:
    """DeviceProfile by node; nodes that are of none are left out."""
    rules = [rule_of(profile) for profile in rank_profiles(profiles)]
    found = {node.name: find_rule(rules, node.labels) for node in nodes}
    return {name: rule.name for name, rule in found.items() if rule is not None}


def collect_uses(
    wanted: Iterable[Asked],
    *,
    ask: Ask,
    nodes: Mapping[str, NodeView],
    profiles: Mapping[str, str],
    now: float,
) -> tuple[list[PodUse], list[NotCounted]]:
    """What every pod has counted, asked side by side. ForbiddenError when none may be asked."""
    pods = list(wanted)
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        answers = list(pool.map(lambda asked: _ask(asked.pod, ask, now), pods))
    forbidden = [answer for answer in answers if isinstance(answer, ForbiddenError)]
    if forbidden and not any(isinstance(answer, Meter) for answer in answers):
        raise forbidden[0]
    uses, left = [], []
    for asked, answer in zip(pods, answers, strict=True):
        pod = asked.pod
        if not isinstance(answer, Meter) or pod.started_at is None:
            left.append(
                NotCounted(deployment=asked.deployment, pod=pod.address.pod, node=pod.node, why=str(answer))
            )
            continue
        node = nodes.get(pod.node)
        uses.append(
            PodUse(
                deployment=asked.deployment,
                node=pod.node,
                site=node.labels.get(asked.site_label, "") if node is not None else "",
                profile=profiles.get(pod.node, ""),
                seconds=now - pod.started_at,
                meter=answer,
            )
        )
    return uses, left


def _ask(pod: ServingPod, ask: Ask, now: float) -> Meter | CliError | str:
    if not pod.ready or pod.started_at is None:
        return "is not ready, or its node is offline"
    if now - pod.started_at < YOUNGEST_SECONDS:
        return "runs for less than a minute, which gives no rate"
    try:
        return parse_meter(ask(pod))
    except CliError as error:
        return error
