# SPDX-License-Identifier: Apache-2.0
"""`chat` right after `kubectl apply`: it waits, says for what, and gives up where nothing will come."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmcli.awaiting import describe_wait
from slmcli.errors import CliError, UnreachableError
from slmcli.view import read_deployment
from tests.unit.slmcli.cli_double import Ran, ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import STABLE, Body, build_body, build_pod, build_status, condition
from tests.unit.slmcli.test_cli_chat import build_server_pod, build_stream

INSTALLING: Body = {"stableRevision": "", "modelVersion": "", "readyNodes": "0/3"}
VARIANT: Body = {"name": "int4", "sourceHash": "h", "digest": "d", "reference": "", "sizeBytes": 5 << 20}


@dataclass
class Scene:
    """What the cluster shows at one look; an error in place of pods is a link that is down."""

    pods: list[Body] | CliError = field(default_factory=list)
    status: Body | None = None


@dataclass
class Growing(ScriptedCluster):
    """Shows a scene per look; the last one stays."""

    scenes: list[Scene] = field(default_factory=list)

    def pods(self, namespace: str, name: str) -> list[Body]:
        scene = self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]
        if self.scenes:
            self.put(build_body(self.scenes[0].status))
        if isinstance(scene.pods, CliError):
            raise scene.pods
        return deepcopy(scene.pods)


def starting(node: str, *, init: str = "", server: str = "", **more: Any) -> Body:
    """A serving pod that is not ready; `init` and `server` are `running`, a reason to wait, or nothing."""
    body = build_server_pod(node, ready=False, **more)

    def states(name: str, state: str) -> list[Body]:
        found = {"running": {}} if state == "running" else {"waiting": {"reason": state}}
        return [{"name": name, "restartCount": 0, "state": found}]

    body["status"]["initContainerStatuses"] = states("fetch", init) if init else []
    body["status"]["containerStatuses"] = states("server", server or "PodInitializing")
    return body


def play(*scenes: Scene) -> Growing:
    cluster = Growing(scenes=list(scenes))
    cluster.put(build_body(scenes[0].status))
    cluster.streams = [build_stream("hello")]
    return cluster


def ask(cluster: Growing, capsys: pytest.CaptureFixture[str], *more: str, **how: Any) -> Ran:
    return run_cli(cluster, "chat", "orders", "-m", "hi", *more, capsys=capsys, **how)


def resolving(**more: Any) -> Body:
    says = [condition("ModelResolved", "Unknown", "Resolving", "finding out the files of int4")]
    return build_status(**INSTALLING, conditions=says) | more


def test_it_waits_for_the_first_ready_pod_and_says_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    known = build_status(**INSTALLING, variants=[VARIANT])
    fetching = [starting("n1", init="running"), starting("n2", init="ImagePullBackOff"), starting("n3")]
    loading = [starting("n1", server="running"), build_pod("n2", STABLE, ready=False, role="prefetch")]
    pending = starting("n3")
    del pending["spec"]["nodeName"]
    cluster = play(
        Scene(),
        Scene(status=resolving()),
        Scene(status=known, pods=[pending]),
        Scene(status=known, pods=fetching),
        Scene(status=known, pods=fetching),
        Scene(status=known, pods=loading),
        Scene(status=known, pods=[build_server_pod("n1"), *loading[1:]]),
    )
    ran = ask(cluster, capsys)
    assert (ran.code, ran.out) == (0, "hello\n")
    assert ran.err.splitlines() == [
        f"waiting for the first ready pod: {text}"
        for text in (
            "the operator to see the deployment",
            "finding out the files of int4",
            "1 waiting for a node",
            "1 starting, 1 downloading the model (5MiB), 1 in ImagePullBackOff",
            "1 downloading the model (5MiB), 1 loading the model",
        )
    ]
    assert ran.slept == 6


def test_what_does_not_come_in_time_ends_with_four(capsys: pytest.CaptureFixture[str]) -> None:
    ran = ask(play(Scene(status=resolving())), capsys, "--timeout", "90s")
    assert (ran.code, ran.slept) == (4, 90)
    assert "no ready pod after 90s: finding out the files" in ran.err
    assert "kubectl slm explain orders -n shop" in ran.err and "--timeout" in ran.err


def test_a_link_that_breaks_meanwhile_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    gone = Scene(pods=UnreachableError("no route"))
    cluster = play(gone, gone, Scene(status=build_status(), pods=[build_server_pod("n1")]))
    ran = ask(cluster, capsys)
    assert ran.code == 0 and ran.err.count("the cluster does not answer: no route") == 1
    assert ask(play(gone), capsys, "--timeout", "0").code == 3
    assert ask(play(gone), capsys, "--timeout", "5s").code == 4


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (condition("Accepted", "False", "InvalidSpec", "spec.variants: two are alike"), "two are alike"),
        (condition("Ready", "False", "NoMatchingNodes", "no node matches"), "no node matches"),
        (condition("Ready", "True", "ScaledToZero", "replicas is 0"), "replicas is 0"),
    ],
)
def test_what_comes_to_nothing_is_not_waited_for(
    says: Body, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = ask(play(Scene(status=build_status(**INSTALLING, conditions=[says]))), capsys)
    assert (ran.code, ran.slept) == (1, 0) and words in ran.err


def test_a_refused_spec_beside_a_stable_revision_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    refused = condition("Accepted", "False", "InvalidQuery", "no PromQL")
    cluster = play(
        Scene(status=build_status(conditions=[refused]), pods=[starting("n1", server="running")]),
        Scene(status=build_status(conditions=[refused]), pods=[build_server_pod("n1")]),
    )
    assert ask(cluster, capsys).code == 0


def test_a_node_without_a_pod_is_waited_for_only_while_something_is_under_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = [build_server_pod("n1"), starting("n2", init="running")]
    settled = Scene(status=build_status(), pods=others)
    assert ask(play(settled), capsys, "--node", "n9").code == 3
    busy = build_status(conditions=[condition("Ready", "False", "NodesNotReady", "1 of 2 serve")])
    cluster = play(Scene(status=busy, pods=others), Scene(status=busy, pods=[build_server_pod("n2")]))
    ran = ask(cluster, capsys, "--node", "n2")
    assert ran.code == 0 and "on node n2: 1 downloading the model" in ran.err


def test_a_talk_begins_when_there_is_somebody_to_talk_to(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = play(Scene(), Scene(status=build_status(), pods=[build_server_pod("n1")]))
    ran = run_cli(cluster, "chat", "orders", capsys=capsys, typed="hi\n/exit\n")
    assert (ran.code, ran.out) == (0, "hello\n")
    assert ran.err.index("waiting for") < ran.err.index("/reset forgets")
    assert run_cli(play(Scene()), "chat", "orders", capsys=capsys, typed="hi\n").code == 4


def pod_parts() -> Iterator[st.SearchStrategy[Any]]:
    state = st.fixed_dictionaries(
        {}, optional={"running": st.just({}), "waiting": st.just({"reason": "X"}), "terminated": st.just({})}
    )
    statuses = st.none() | st.lists(st.fixed_dictionaries({}, optional={"state": state}), max_size=2)
    yield st.fixed_dictionaries(
        {}, optional={"initContainerStatuses": statuses, "containerStatuses": statuses}
    )
    yield st.fixed_dictionaries({}, optional={"nodeName": st.sampled_from(["n1", ""])})


@given(st.lists(st.tuples(*pod_parts()), max_size=4), st.sampled_from([None, "n1", "n9"]))
def test_pods_of_any_shape_are_described(parts: list[tuple[Body, Body]], node: str | None) -> None:
    pods = [{"metadata": {"name": f"p{n}"}, "spec": s, "status": t} for n, (t, s) in enumerate(parts)]
    assert describe_wait(read_deployment(build_body(build_status())), pods, node=node)
