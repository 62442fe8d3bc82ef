# SPDX-License-Identifier: Apache-2.0
"""When each step on the way from `kubectl apply` to the first Ready pod was reached."""

import json
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Final

from e2e.lib import Cluster
from e2e.lib.deployment import KIND
from e2e.lib.observe import is_true
from e2e.lib.watch import Watch

STEPS: Final = (
    "accepted", "resolved", "pod created", "scheduled", "image", "fetched", "server started", "loaded",
    "evaluated", "ready",
)  # fmt: skip
"""In order; the time of a step is from the one before that was seen (the first: from the apply)."""
_LOG_STEPS: Final = {"model loaded": "loaded", "evaluated": "evaluated"}

Body = Mapping[str, Any]


class Timeline:
    """Context manager that notes times, in seconds since the epoch, from entering on.

    `pods` is a label selector; pods named in `ignore` were there before. With `deployment` also what its
    SLMDeployment says is noted.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        pods: str,
        deployment: str = "",
        ignore: Collection[str] = (),
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._pods = pods
        self._deployment = deployment
        self._ignore = frozenset(ignore)
        self._watches = ExitStack()
        self._ready = threading.Event()
        self._pod = ""
        self.begin = 0.0
        self.times: dict[str, float] = {}

    def __enter__(self) -> "Timeline":
        where = ("-n", self._namespace)
        watch = Watch(self._cluster, "pods", *where, "-l", self._pods, take=self._take_pod)
        self._watches.enter_context(watch)
        if self._deployment:
            named = f"--field-selector=metadata.name={self._deployment}"
            self._watches.enter_context(Watch(self._cluster, KIND, *where, named, take=self._take_resource))
        time.sleep(1.0)  # the watches stand before the clock starts
        self.begin = time.time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.close()

    def wait_ready(self, *, timeout_seconds: float = 120) -> dict[str, float]:
        """Wait for the first Ready pod; return the seconds of each step and of all, as `total`."""
        if not self._ready.wait(timeout_seconds):
            raise TimeoutError(f"no pod became Ready within {timeout_seconds:g} s; seen: {self.times}")
        self._read_log()
        total = self.times["ready"] - self.begin
        return durations(self.times, begin=self.begin) | {"total": total}

    def _note(self, step: str, at: float) -> None:
        self.times.setdefault(step, at)

    def _take_resource(self, kind: str, resource: Body, at: float) -> None:
        if is_true(resource, "Accepted"):
            self._note("accepted", at)
        if is_true(resource, "ModelResolved"):
            self._note("resolved", at)

    def _take_pod(self, kind: str, pod: Body, at: float) -> None:
        name = pod["metadata"]["name"]
        if name in self._ignore:
            return
        if pod["metadata"].get("deletionTimestamp") or self._pod not in ("", name):
            return
        self._pod = name
        self._note("pod created", at)
        status = pod.get("status", {})
        if pod["spec"].get("nodeName"):
            self._note("scheduled", at)
        for container in status.get("initContainerStatuses", []):
            if container.get("imageID"):
                self._note("image", at)
            if container.get("state", {}).get("terminated", {}).get("exitCode") == 0:
                self._note("fetched", at)
        for container in status.get("containerStatuses", []):
            if container.get("state", {}).get("running"):
                self._note("server started", at)
        if is_true(pod, "Ready"):
            self._note("ready", at)
            self._ready.set()

    def _read_log(self) -> None:
        for line in self._cluster.logs(self._namespace, self._pod, container="server").splitlines():
            try:
                entry = json.loads(line)
                step = _LOG_STEPS[entry["message"]]
                at = datetime.fromisoformat(entry["time"]).timestamp()
            except (ValueError, KeyError, TypeError):
                continue
            self._note(step, at)


def durations(times: Mapping[str, float], *, begin: float) -> dict[str, float]:
    """Seconds of each step that was seen, from the one before; never negative.

    A step may be seen together with a later one: the kubelet reports several in one update.
    """
    result: dict[str, float] = {}
    before = begin
    for index, step in enumerate(STEPS):
        later = [times[name] for name in STEPS[index:] if name in times]
        if step not in times:
            continue
        at = min(later)
        result[step] = max(0.0, at - before)
        before = max(before, at)
    return result
