# SPDX-License-Identifier: Apache-2.0
"""Everything that happens to a deployment while a test looks elsewhere: every version of its status
and every change of the nodes' labels, by watching, so that no state in between is missed."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from e2e.lib.deployment import KIND, Deployment
from e2e.lib.observe import assignments, label_prefix, rollout_of
from e2e.lib.session import EDGE_SELECTOR
from e2e.lib.watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The state after one change; `at` is when it was seen, in seconds since the epoch."""

    at: float
    resource: Mapping[str, Any]
    labels: Mapping[str, Mapping[str, str]]
    """Per node its labels of the deployment, prefix cut off."""

    @property
    def step(self) -> str:
        """The rollout's step; empty before the first."""
        return str(rollout_of(self.resource).get("step", ""))

    @property
    def wave(self) -> int:
        """Index of the rollout's wave."""
        return int(rollout_of(self.resource).get("wave", 0))

    @property
    def revision(self) -> str:
        """The rollout's revision."""
        return str(rollout_of(self.resource).get("revision", ""))

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict by wave."""
        waves = rollout_of(self.resource).get("waves", [])
        return {wave["name"]: wave.get("verdict", "") for wave in waves}

    def nodes_given(self, revision: str) -> set[str]:
        """Nodes that are to serve the revision."""
        return {node for node, own in self.labels.items() if revision in own}

    def nodes_fetching(self, revision: str) -> set[str]:
        """Nodes that are to fetch the revision ahead."""
        return {node for node, own in self.labels.items() if f"{revision}.prefetch" in own}


class History:
    """Context manager that records frames of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._prefix = label_prefix(deployment.namespace, deployment.name)
        self._frames: list[Frame] = []
        self._resource: Mapping[str, Any] = {}
        self._nodes: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()
        self._watches = ExitStack()

    @property
    def frames(self) -> tuple[Frame, ...]:
        """What has been seen so far."""
        with self._lock:
            return tuple(self._frames)

    def of(self, revision: str) -> tuple[Frame, ...]:
        """Frames in which the rollout is one of that revision."""
        return tuple(frame for frame in self.frames if frame.revision == revision)

    def describe(self) -> str:
        """One line for each frame that differs from the one before."""
        lines: list[str] = []
        for frame in self.frames:
            text = f"{frame.step} wave {frame.wave} {frame.verdicts} {dict(frame.labels)}"
            if not lines or not lines[-1].endswith(text):
                lines.append(f"{frame.at:.1f} {text}")
        return "\n".join(lines)

    def __enter__(self) -> "History":
        cluster, deployment = self.deployment.cluster, self.deployment
        where = ["-n", deployment.namespace, f"--field-selector=metadata.name={deployment.name}"]
        self._watches.enter_context(Watch(cluster, "nodes", "-l", EDGE_SELECTOR, take=self._take_node))
        self._watches.enter_context(Watch(cluster, KIND, *where, take=self._take_resource))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.close()

    def _take_resource(self, kind: str, resource: Mapping[str, Any], at: float) -> None:
        with self._lock:
            self._resource = resource
            self._record(at)

    def _take_node(self, kind: str, node: Mapping[str, Any], at: float) -> None:
        name = node["metadata"]["name"]
        with self._lock:
            before = self._nodes.get(name, {}).get("metadata", {}).get("labels")
            self._nodes[name] = node
            if before != node["metadata"].get("labels"):
                self._record(at)

    def _record(self, at: float) -> None:
        labels = assignments(self._nodes.values(), prefix=self._prefix)
        self._frames.append(Frame(at=at, resource=self._resource, labels=labels))
