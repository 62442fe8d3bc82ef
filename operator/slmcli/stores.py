# SPDX-License-Identifier: Apache-2.0
"""What the store of each node holds, as its store agent tells it.

The text comes from a node, which may be older or newer than this program or tampered with: what is not
understood is passed over, and nothing in it is shown before it was cleaned.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from slmcli.cluster import Body
from slmcli.errors import CliError, ForbiddenError
from slmcli.safe import clean, clean_tree
from slmops.planning.nodes import Problem
from slmwire.paths import AGENT_PORT

PARALLEL: Final = 16
"""Agents asked at a time."""
_MOST: Final = 200
"""Entries of a list that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A store agent's pod."""

    namespace: str
    pod: str
    node: str
    port: int
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A revision whose files a store keeps."""

    namespace: str
    deployment: str
    revision: str
    size_bytes: int
    complete: bool
    in_use: bool
    """A pod serves from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A fetch under way."""

    namespace: str
    deployment: str
    revision: str
    done_bytes: int
    total_bytes: int
    bytes_per_second: int
    seconds_left: int | None
    origin: str
    """`source` or `peers`; empty when it is not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a store holds. Sizes in bytes; None where the agent did not say."""

    held_bytes: int | None = None
    free_bytes: int | None = None
    file_system_bytes: int | None = None
    reclaimable_bytes: int | None = None
    pins: tuple[Pin, ...] = ()
    partial_bytes: int = 0
    fetches: tuple[Progress, ...] = ()
    quarantined: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """One node's store, or why nothing is known of it."""

    node: str
    site: str = ""
    agent: str = ""
    """Name of the agent's pod; empty when the node has none."""
    stored: Stored | None = None
    problem: Problem | None = None


_NO_AGENT: Final = Problem(
    reason="NoStoreAgent",
    message="no store agent runs on the node; check storeAgent.nodeSelector and tolerations of the chart",
)
_NOT_READY: Final = Problem(
    reason="AgentNotReady", message="its store agent is not ready, or the node is offline"
)


def read_agent(body: Body) -> Agent:
    """An agent's pod; the port is the one that its container names."""
    spec, metadata = body.get("spec") or {}, body["metadata"]
    ports = [p for c in spec.get("containers") or () for p in c.get("ports") or ()]
    conditions = (body.get("status") or {}).get("conditions") or ()
    return Agent(
        namespace=metadata.get("namespace", ""),
        pod=metadata["name"],
        node=str(spec.get("nodeName") or ""),
        port=int(ports[0].get("containerPort") or AGENT_PORT) if ports else AGENT_PORT,
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
        and "deletionTimestamp" not in metadata,
    )


def read_store(body: Any) -> Stored:
    """An inventory as `slmfetch.inventory` makes it; what has another shape counts as not said."""
    found = clean_tree(body) if isinstance(body, dict) else {}
    return Stored(
        held_bytes=_size(found.get("bytes")),
        free_bytes=_size(found.get("freeBytes")),
        file_system_bytes=_size(found.get("fileSystemBytes")),
        reclaimable_bytes=_size(found.get("reclaimableBytes")),
        pins=tuple(map(_pin, _maps(found.get("pins")))),
        partial_bytes=sum(_size(p.get("bytes")) or 0 for p in _maps(found.get("partials"))),
        fetches=tuple(map(_progress, _maps(found.get("progress")))),
        quarantined=len(_list(found.get("quarantined"))),
        problems=tuple(text for text in _list(found.get("problems")) if isinstance(text, str)),
    )


def _pin(entry: Mapping[str, Any]) -> Pin:
    return Pin(
        **_who(entry),
        size_bytes=_size(entry.get("bytes")) or 0,
        complete=entry.get("complete") is True,
        in_use=entry.get("inUse") is True,
    )


def _progress(entry: Mapping[str, Any]) -> Progress:
    return Progress(
        **_who(entry),
        done_bytes=_size(entry.get("bytes")) or 0,
        total_bytes=_size(entry.get("total")) or 0,
        bytes_per_second=_size(entry.get("bytesPerSecond")) or 0,
        seconds_left=_size(entry.get("secondsLeft")),
        origin=_text(entry.get("from")),
    )


def _who(entry: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(entry.get(key)) for key in ("namespace", "deployment", "revision")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _size(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 62:
        return None
    return int(value)


def _list(value: Any) -> Sequence[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _maps(value: Any) -> Iterable[Mapping[str, Any]]:
    return (entry for entry in _list(value) if isinstance(entry, dict))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which nodes to ask, and for what."""

    sites: Mapping[str, str] | None = None
    """Site by node; None: every node that has an agent."""
    pins_of: tuple[str, str] | None = field(default=None)
    """(namespace, name): only what this SLMDeployment pins and fetches."""


def report_stores(
    agents: Iterable[Agent], wanted: Wanted, *, ask: Callable[[Agent], Body]
) -> tuple[StoreReport, ...]:
    """One report per node, by site and name. Agents are asked side by side; one that does not answer is
    reported as such. ForbiddenError when no agent may be asked."""
    by_node = {agent.node: agent for agent in agents if agent.node}
    nodes = list(by_node if wanted.sites is None else wanted.sites)
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        answers = list(pool.map(lambda node: _ask(by_node.get(node), ask), nodes))
    errors = [answer for answer in answers if isinstance(answer, ForbiddenError)]
    if errors and not any(isinstance(answer, Stored) for answer in answers):
        raise errors[0]
    reports = [
        StoreReport(
            node=clean(node),
            site=clean((wanted.sites or {}).get(node, "")),
            agent=clean(by_node[node].pod) if node in by_node else "",
            stored=_only(answer, wanted.pins_of) if isinstance(answer, Stored) else None,
            problem=_problem(answer),
        )
        for node, answer in zip(nodes, answers, strict=True)
    ]
    return tuple(sorted(reports, key=lambda report: (report.site, report.node)))


def _ask(agent: Agent | None, ask: Callable[[Agent], Body]) -> Stored | Problem | CliError:
    if agent is None:
        return _NO_AGENT
    if not agent.ready:
        return _NOT_READY
    try:
        return read_store(ask(agent))
    except CliError as error:
        return error


def _problem(answer: Stored | Problem | CliError) -> Problem | None:
    if isinstance(answer, CliError):
        return Problem(reason="NoAnswer", message=clean(str(answer)))
    if isinstance(answer, Problem):
        return answer
    if answer.problems:
        return Problem(reason="StoreDamaged", message="; ".join(answer.problems))
    if answer.quarantined:
        return Problem(
            reason="IntegrityMismatch", message=f"{answer.quarantined} file(s) failed verification"
        )
    return None


def _only(stored: Stored, owner: tuple[str, str] | None) -> Stored:
    if owner is None:
        return stored
    return Stored(
        held_bytes=stored.held_bytes,
        free_bytes=stored.free_bytes,
        file_system_bytes=stored.file_system_bytes,
        reclaimable_bytes=stored.reclaimable_bytes,
        pins=tuple(pin for pin in stored.pins if (pin.namespace, pin.deployment) == owner),
        partial_bytes=stored.partial_bytes,
        fetches=tuple(f for f in stored.fetches if (f.namespace, f.deployment) == owner),
        quarantined=stored.quarantined,
        problems=stored.problems,
    )
