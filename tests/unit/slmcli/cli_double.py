# SPDX-License-Identifier: Apache-2.0
"""A scripted cluster, and the whole program run against it."""

import io
from collections.abc import Callable, Generator, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest

from slmcli.__main__ import run
from slmcli.cluster import PodAddress
from slmcli.errors import CliError, ConflictError, NotFoundError
from slmcli.session import Session
from slmcli.terminal import Terminal
from tests.unit.slmcli.cli_objects import NOW, Body


@dataclass
class ScriptedCluster:
    """Implements slmcli.cluster.Cluster over bodies in memory.

    `answer` plays the operator: it sees the object after each patch. `watches` holds one script per watch:
    bodies of events, or an error to raise.
    """

    objects: dict[tuple[str, str], Body] = field(default_factory=dict)
    slmmodels: list[Body] = field(default_factory=list)
    stored: list[Body] = field(default_factory=list)
    occurred: list[Body] = field(default_factory=list)
    fleet: list[Body] = field(default_factory=list)
    blueprints: list[Body] | None = None
    """DeviceProfiles; None when the cluster does not know the kind."""
    running: list[Body] = field(default_factory=list)
    training: list[Body] = field(default_factory=list)
    """Pods that train adapters."""
    agents: list[Body] = field(default_factory=list)
    stores: dict[str, Body | CliError] = field(default_factory=dict)
    """Answer of each agent by the name of its pod."""
    exposed: list[Body] = field(default_factory=list)
    """Services."""
    policies: list[Body] = field(default_factory=list)
    """NetworkPolicies."""
    texts: dict[str, str | CliError] = field(default_factory=dict)
    """What each pod answers to GET."""
    streams: list[list[bytes | BaseException]] = field(default_factory=list)
    """What is answered to each POST, piece by piece."""
    posted: list[tuple[PodAddress, str, Body, str]] = field(default_factory=list)
    patches: list[Body] = field(default_factory=list)
    conflicts: int = 0
    answer: Callable[[Body], None] = lambda body: None
    watches: list[list[Body | CliError]] = field(default_factory=list)
    broken: CliError | None = None
    events_error: CliError | None = None

    def put(self, body: Body) -> None:
        self.objects[(body["metadata"]["namespace"], body["metadata"]["name"])] = body

    def get(self, namespace: str, name: str) -> Body:
        if self.broken is not None:
            raise self.broken
        try:
            return deepcopy(self.objects[(namespace, name)])
        except KeyError:
            raise NotFoundError(f'slmdeployments.slmops.dev "{name}" not found') from None

    def deployments(self, namespace: str) -> list[Body]:
        if self.broken is not None:
            raise self.broken
        return [deepcopy(body) for (ns, _), body in self.objects.items() if namespace in ("", ns)]

    def model(self, namespace: str, name: str) -> Body:
        for body in self.models(namespace):
            if body["metadata"]["name"] == name:
                return body
        raise NotFoundError(f'slmmodels.slmops.dev "{name}" not found')

    def models(self, namespace: str) -> list[Body]:
        return [deepcopy(body) for body in self.slmmodels if body["metadata"]["namespace"] == namespace]

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        target = self.objects[(namespace, name)]
        metadata = target["metadata"]
        if self.conflicts:
            self.conflicts -= 1
            metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        if body["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ConflictError("the object has been modified")
        self.patches.append(body)
        for key, value in body["metadata"]["annotations"].items():
            if value is None:
                metadata["annotations"].pop(key, None)
            else:
                metadata["annotations"][key] = value
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        self.answer(target)
        return deepcopy(target)

    def watch(self, namespace: str, name: str, resource_version: str) -> Iterator[Body]:
        if not self.watches:
            raise KeyboardInterrupt  # the person has seen enough
        for step in self.watches.pop(0):
            if isinstance(step, CliError):
                raise step
            yield step

    def revisions(self, namespace: str, name: str) -> list[Body]:
        return self.stored

    def events(self, namespace: str, uid: str) -> list[Body]:
        if self.events_error is not None:
            raise self.events_error
        return self.occurred

    def nodes(self) -> list[Body]:
        return self.fleet

    def profiles(self) -> list[Body]:
        if self.blueprints is None:
            raise NotFoundError("the server could not find the requested resource")
        return deepcopy(self.blueprints)

    def pods(self, namespace: str, name: str) -> list[Body]:
        return self.running

    def training_pods(self, namespace: str, name: str) -> list[Body]:
        return self.training

    def services(self, namespace: str) -> list[Body]:
        return deepcopy(self.exposed)

    def network_policies(self, namespace: str) -> list[Body]:
        return deepcopy(self.policies)

    def pod_text(self, address: PodAddress, path: str) -> str:
        answer = self.texts.get(address.pod, "")
        if isinstance(answer, CliError):
            raise answer
        return answer

    def pod_stream(
        self, address: PodAddress, path: str, body: Body, *, key: str
    ) -> Generator[bytes, None, None]:
        self.posted.append((address, path, deepcopy(body), key))
        for piece in self.streams.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def store_agents(self, namespace: str) -> list[Body]:
        return [body for body in self.agents if body["metadata"]["namespace"] == namespace]

    def store(self, namespace: str, pod: str, port: int) -> Body:
        answer = self.stores[pod]
        if isinstance(answer, CliError):
            raise answer
        return deepcopy(answer)


@dataclass(frozen=True)
class Here:
    """A connection to it."""

    cluster: ScriptedCluster
    namespace: str = "shop"


@dataclass
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str
    slept: float


class Keyboard(io.StringIO):
    """Input from a terminal; the line `^C` is a Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        line = super().readline()
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


def run_cli(
    cluster: ScriptedCluster,
    *argv: str,
    capsys: pytest.CaptureFixture[str],
    width: int = 4000,
    live: bool = False,
    typed: str | None = None,
    piped: str = "",
) -> Ran:
    """Run the program; time passes only in its sleeps. `live` makes output a terminal, `typed` is what a
    person types at one, `piped` comes through a pipe."""
    out, err = io.StringIO(), io.StringIO()
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    def open_session(arguments: Any) -> Session:
        return Session(
            connect=lambda: Here(cluster),
            terminal=Terminal(out=out, width=width, live=live),
            err=err,
            inp=io.StringIO(piped) if typed is None else Keyboard(typed),
            chosen_namespace=arguments.namespace,
            now=lambda: NOW + slept,
            sleep=sleep,
        )

    code = run(argv, open_session=open_session)
    captured = capsys.readouterr()
    return Ran(code=code, out=out.getvalue() + captured.out, err=err.getvalue() + captured.err, slept=slept)
