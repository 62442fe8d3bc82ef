# SPDX-License-Identifier: Apache-2.0
"""Watches a side at work: from applying a version until every deployment is promoted and settled."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from e2e.bench.fleet_numbers import Page, cpu_seconds, growth, growth_by, memory_bytes, quantile
from e2e.bench.fleet_rows import OURS, Rest, Run
from e2e.bench.fleet_sides import Requests, Side
from e2e.bench.fleet_site import NAMESPACE, Body, Site, read_process, say
from e2e.rig import RigError

PODS: Final = f"/api/v1/namespaces/{NAMESPACE}/pods"
NODES: Final = "/api/v1/nodes"
PROGRESS_SECONDS: Final = 10.0
_SERVER_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE"})
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Counters at one moment. Being looked at costs the controller something, which is left out."""

    page: Page
    server: Page
    cpu_seconds_before: float | None
    """Before the controller was asked for its metrics."""
    cpu_seconds_after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Where the pods are."""

    done: int
    """Deployments that have all their pods, all new and ready, and no other."""
    moved: int
    """New pods that are ready."""


def take_look(site: Site, side: Side) -> Look:
    """Read all counters."""
    cpu_before = _controller_cpu_seconds(site)
    page = side.page()
    cpu_after = _controller_cpu_seconds(site)
    return Look(
        page=page,
        server=site.api.metrics(),
        cpu_seconds_before=cpu_before,
        cpu_seconds_after=cpu_after,
    )


def _controller_cpu_seconds(site: Site) -> float | None:
    pid = site.controller.pid
    return cpu_seconds(read_process(pid, "stat"), ticks_per_second=_TICKS) if pid else None


def _spent(before: Look, after: Look) -> float | None:
    if before.cpu_seconds_after is None or after.cpu_seconds_before is None:
        return None
    return after.cpu_seconds_before - before.cpu_seconds_after


def count_settled(
    pods: Iterable[tuple[tuple[str, str], bool]], marks: Mapping[str, str], *, pods_each: int
) -> Settled:
    """Judge ((deployment, mark), ready and not on its way out) of every pod against the wanted marks."""
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for (name, mark), ready in pods:
        wanted = bool(mark) and marks.get(name) == mark and ready
        (good if wanted else bad)[name] += 1
    return Settled(
        done=sum(1 for name in marks if good[name] == pods_each and not bad[name]),
        moved=good.total(),
    )


def is_serving(pod: Body) -> bool:
    """Whether a pod is ready and not on its way out."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def work(
    site: Site, side: Side, version: str, *, deployments: int, nodes_each: int, deadline_seconds: float
) -> Run:
    """Apply `version` to all and wait; ends with what was reached when the deadline passes.

    The time is that of the poll that saw the end, at most a second or a hundredth of the deployments
    in seconds late. A part that dies ends the run; its last words are the `problem`.
    """
    before = take_look(site, side)
    say(f"{side.key}: {version} to {deployments} deployments of {nodes_each} nodes")
    asked, began = site.evidence.asked, time.monotonic()
    settled, problem = Settled(done=0, moved=0), ""
    try:
        for index in range(deployments):
            side.apply(index, version)
        problem = _wait(
            site, side, version, deployments=deployments, nodes_each=nodes_each,
            deadline=began + deadline_seconds,
        )  # fmt: skip
    except RigError as error:
        problem = str(error)
    seconds = time.monotonic() - began
    try:
        settled = _settled(site, side, side.promoted(version), nodes_each)
        after = take_look(site, side)
    except RigError as error:
        say(f"{side.key}: {version} ended after {seconds:.0f} s: {problem or error}")
        return Run(
            wanted=deployments, done=settled.done, moved=settled.moved, wall_seconds=seconds,
            problem=problem or str(error),
        )  # fmt: skip
    run = _build_run(
        site, side, before, after, wanted=deployments, settled=settled, wall_seconds=seconds, problem=problem
    )
    say(f"{side.key}: {version} {run.done} of {run.wanted} in {seconds:.0f} s {problem}".rstrip())
    if run.requests is not None:
        writes = ", ".join(f"{resource} {count:g}" for resource, count in run.writes.items())
        asked = site.evidence.asked - asked
        say(f"{side.key}: {run.requests:g} requests; writes: {writes}; {asked} questions to Prometheus")
    return run


def _wait(site: Site, side: Side, version: str, *, deployments: int, nodes_each: int, deadline: float) -> str:
    """Empty when everything was reached, else what was not."""
    told = time.monotonic()
    settled = Settled(done=0, moved=0)
    while True:
        site.check()
        marks = side.promoted(version)
        if len(marks) == deployments:
            settled = _settled(site, side, marks, nodes_each)
            if settled.done == deployments:
                return ""
        now = time.monotonic()
        if now > deadline:
            return f"the time was over with {len(marks)} promoted and {settled.done} settled"
        if now - told > PROGRESS_SECONDS:
            told = now
            say(f"{side.key}: {len(marks)} of {deployments} promoted, {deadline - now:.0f} s left")
        time.sleep(max(1.0, deployments / 100))


def _settled(site: Site, side: Side, marks: Mapping[str, str], nodes_each: int) -> Settled:
    pods = [(side.mark_of(pod), is_serving(pod)) for pod in site.api.items(PODS)]
    return count_settled(pods, marks, pods_each=nodes_each)


def _build_run(
    site: Site,
    side: Side,
    before: Look,
    after: Look,
    *,
    wanted: int,
    settled: Settled,
    wall_seconds: float,
    problem: str,
) -> Run:
    pid, requests = site.controller.pid, side.requests
    return Run(
        wanted=wanted,
        done=settled.done,
        moved=settled.moved,
        wall_seconds=wall_seconds,
        cpu_seconds=_spent(before, after),
        peak_bytes=memory_bytes(read_process(pid, "status"), "VmHWM") if pid else None,
        requests=growth(before.page, after.page, requests.metric) if requests else None,
        writes=count_writes(before.page, after.page, requests) if requests else {},
        server_writes=growth(
            before.server,
            after.server,
            "apiserver_request_total",
            lambda labels: labels.get("verb") in _SERVER_WRITES and labels.get("resource") != "leases",
        ),
        event_to_write_seconds=quantile(before.page, after.page, "slmops_event_to_write_seconds", 0.95)
        if side.key == OURS
        else None,
        problem=problem,
    )


def count_writes(before: Page, after: Page, requests: Requests) -> dict[str, float]:
    """Writes between two pages, by resource."""
    return growth_by(before, after, requests.metric, requests.resource_label, requests.is_write)


def rest(site: Site, side: Side, *, seconds: float) -> Rest:
    """Leave everything alone for a while and see what the controller does."""
    pid, requests = site.controller.pid, side.requests
    if pid is None or requests is None:
        raise RigError("the controller does not run")
    nodes = _node_versions(site)
    before = take_look(site, side)
    began = time.monotonic()
    time.sleep(seconds)
    slept = time.monotonic() - began
    after = take_look(site, side)
    site.check()
    beats = sum(1 for name, version in _node_versions(site).items() if nodes.get(name) != version)
    return Rest(
        seconds=slept,
        cpu_seconds=_spent(before, after) or 0.0,
        resident_bytes=memory_bytes(read_process(pid, "status"), "VmRSS"),
        requests=growth(before.page, after.page, requests.metric),
        beats=beats,
    )


def _node_versions(site: Site) -> dict[str, str]:
    return {n["metadata"]["name"]: n["metadata"]["resourceVersion"] for n in site.api.items(NODES)}
