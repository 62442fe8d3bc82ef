# SPDX-License-Identifier: Apache-2.0
"""A Git repository on this machine, and Applications of Argo CD that follow it."""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from e2e.lib.session import Body, Cluster
from e2e.lib.watch import Watch
from e2e.rig.argocd import NAMESPACE
from e2e.rig.render import render_yaml
from e2e.rig.shell import run

KIND: Final = "applications.argoproj.io"
TRACKING: Final = "argocd.argoproj.io/tracking-id"
MANAGER: Final = "argocd-controller"
"""What Argo CD signs its server-side applies with."""
_REFRESH: Final = "argocd.argoproj.io/refresh"


class GitRepository:
    """A repository with one branch, main; Argo CD reads it through `url`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        """Where it is."""
        return f"file://{self.folder}"

    def write(self, path: str, *objects: Mapping[str, Any]) -> None:
        """Write objects as YAML; the commit is another step."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render_yaml(*objects))

    def commit(self, message: str) -> str:
        """Commit all that differs; the commit's hash."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", message)
        return self.head()

    def revert(self) -> str:
        """`git revert` of the latest commit; the hash of the new one."""
        self._git("revert", "--no-edit", "HEAD")
        return self.head()

    def head(self) -> str:
        """Hash of the latest commit."""
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        who = ["-c", "user.name=e2e", "-c", "user.email=e2e@slmops.dev"]
        return run(["git", "-C", self.folder, *who, *arguments], timeout_seconds=120).stdout


@dataclass(slots=True)
class Application:
    """Handle of one Application."""

    cluster: Cluster
    name: str

    def read(self) -> Body:
        """The object; empty when there is none."""
        return self.cluster.get(KIND, self.name, namespace=NAMESPACE) or {}

    def status(self) -> Body:
        """Its status."""
        return dict(self.read().get("status", {}))

    def refresh(self) -> None:
        """Have Git and cluster compared anew, as a webhook of the Git server does."""
        patch = {"metadata": {"annotations": {_REFRESH: "normal"}}}
        self.cluster.patch(KIND, self.name, patch, namespace=NAMESPACE)

    def compare(self) -> Body:
        """Its status after a comparison that is asked for now."""
        self.refresh()
        self.cluster.wait_for(
            f"{self.name} being compared",
            lambda: _REFRESH not in self.read()["metadata"].get("annotations", {}),
            timeout_seconds=60,
            interval_seconds=0.2,
        )
        return self.status()

    def sync(self) -> None:
        """Sync now, as `argocd app sync` asks for it, and wait until it has succeeded."""
        body = self.read()
        options = body["spec"]["syncPolicy"]["syncOptions"]
        operation = {"sync": {"revision": body["status"]["sync"]["revision"], "syncOptions": options}}
        done = len(self.syncs())
        self.cluster.patch(KIND, self.name, {"operation": operation}, namespace=NAMESPACE)
        self.cluster.wait_for(
            f"{self.name} being synced", lambda: len(self.syncs()) > done, timeout_seconds=180,
            describe=self.describe,
        )  # fmt: skip

    def syncs(self) -> list[str]:
        """Commits that were synced, in order; the same one again counts again."""
        return [entry["revision"] for entry in self.status().get("history", [])]

    def wait(self, *, commit: str, health: str, timeout_seconds: float) -> Body:
        """Wait until the commit is synced, nothing differs and the health is that; return the status."""

        def probe() -> Body | None:
            status = self.status()
            there = status.get("sync", {}).get("revision") == commit
            return status if there and sync_and_health(status) == ("Synced", health) else None

        found = self.cluster.wait_for(
            f"{self.name} being Synced and {health} at {commit[:8]}", probe, timeout_seconds=timeout_seconds,
            describe=self.describe,
        )  # fmt: skip
        assert found is not None
        return found

    def delete(self) -> None:
        """Delete the Application alone; what it made stays."""
        self.cluster.delete(KIND, self.name, namespace=NAMESPACE, wait_seconds=60)

    def describe(self) -> str:
        """What matters of its status, in lines."""
        return describe_application(self.read())


def sync_and_health(status: Mapping[str, Any]) -> tuple[str, str]:
    """Whether anything differs from Git, and the health."""
    return status.get("sync", {}).get("status", ""), status.get("health", {}).get("status", "")


def describe_application(body: Mapping[str, Any]) -> str:
    """Sync, health, operation, and resources that differ."""
    status = body.get("status", {})
    lines = [
        f"sync {status.get('sync', {}).get('status')} {status.get('sync', {}).get('revision', '')[:8]}, "
        f"health {status.get('health')}, operation {status.get('operationState', {}).get('phase')}: "
        f"{status.get('operationState', {}).get('message', '')[:800]}"
    ]
    lines += [f"  {c['type']}: {c['message'][:800]}" for c in status.get("conditions", [])]
    lines += [
        f"  {r.get('kind')} {r.get('name')} {r.get('status')} {r.get('health', {})}"
        for r in status.get("resources", [])
        if r.get("status") != "Synced" or r.get("health", {}).get("status", "Healthy") != "Healthy"
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an Application said at one moment."""

    at: float
    sync: str
    commit: str
    health: str
    started: str
    """When the latest sync began: another value is another sync."""


@dataclass(slots=True)
class ApplicationHistory:
    """Context manager that records every state of one Application."""

    application: Application
    frames: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watches: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "ApplicationHistory":
        where = ["-n", NAMESPACE, f"--field-selector=metadata.name={self.application.name}"]
        self._watches.enter_context(Watch(self.application.cluster, KIND, *where, take=self._take))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.close()

    def _take(self, kind: str, body: Mapping[str, Any], at: float) -> None:
        status = body.get("status", {})
        sync = status.get("sync", {})
        seen = Seen(
            at=at,
            sync=sync.get("status", ""),
            commit=sync.get("revision", ""),
            health=sync_and_health(status)[1],
            started=status.get("operationState", {}).get("startedAt", ""),
        )
        with self._lock:
            self.frames.append(seen)

    def all(self, read: Callable[[Seen], str]) -> list[str]:
        """What `read` gave over time, each change once."""
        with self._lock:
            values = [read(frame) for frame in self.frames]
        return [value for index, value in enumerate(values) if index == 0 or values[index - 1] != value]


def kind_of(entry: Mapping[str, Any]) -> str:
    """Kind, with version and group, of a resource in an Application's status, as kubectl takes it."""
    group = entry.get("group", "")
    return f"{entry['kind']}.{entry['version']}.{group}" if group else str(entry["kind"])


def read_all(cluster: Cluster, resources: list[Mapping[str, Any]]) -> list[Body]:
    """The objects that an Application's status names, with who owns which field."""
    found: list[Body] = []
    for namespace in sorted({str(entry.get("namespace", "")) for entry in resources}):
        names = [
            f"{kind_of(entry)}/{entry['name']}"
            for entry in resources
            if entry.get("namespace", "") == namespace
        ]
        where = ["-n", namespace] if namespace else []
        text = cluster.kubectl("get", *where, *names, "--show-managed-fields", "-o", "json")
        body = json.loads(text)
        found += body["items"] if body["kind"] == "List" else [body]
    return found


def let_go(cluster: Cluster, resources: list[Mapping[str, Any]]) -> None:
    """Take Argo CD's marks off objects that somebody else goes on to manage: its annotation, and its part in
    who owns which field. `resources` are entries of an Application's status."""
    for body in read_all(cluster, resources):
        metadata = body["metadata"]
        owners = [owner for owner in metadata["managedFields"] if owner["manager"] != MANAGER]
        patch: list[Mapping[str, Any]] = [
            {"op": "replace", "path": "/metadata/managedFields", "value": owners}
        ]
        if TRACKING in metadata.get("annotations", {}):
            patch.append({"op": "remove", "path": f"/metadata/annotations/{TRACKING.replace('/', '~1')}"})
        group, _, version = body["apiVersion"].rpartition("/")
        kind = kind_of({"kind": body["kind"], "version": version, "group": group})
        cluster.patch(kind, metadata["name"], patch, namespace=metadata.get("namespace", ""))
