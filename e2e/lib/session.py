# SPDX-License-Identifier: Apache-2.0
"""The cluster as the suites, the demo and the benchmark use it: the rig, or any other by kubeconfig."""

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, TypeVar

from e2e.rig import ClusterAccess, Kubectl, Rig, RigError, existing_cluster

Body = dict[str, Any]
Found = TypeVar("Found")

EDGE_SELECTOR: Final = "slmops.dev/edge=true"
MODELS_URL_VARIABLE: Final = "SLMOPS_MODELS_URL"


class WaitError(AssertionError):
    """Something did not come about in time; the message says what was there instead."""


class FaultsUnavailableError(RuntimeError):
    """A fault was asked of a cluster that the rig did not make."""


class Cluster:
    """kubectl with parsed answers and patience. Methods raise RigError with kubectl's words."""

    def __init__(self, access: ClusterAccess, *, models_url: str) -> None:
        self.access = access
        self.models_url = models_url
        """Where the pods find the folder e2e/models."""

    @property
    def is_rig(self) -> bool:
        """Whether faults can be injected."""
        return isinstance(self.access, Rig)

    @property
    def rig(self) -> Rig:
        """The rig behind it; raises FaultsUnavailableError when it is another cluster."""
        if not isinstance(self.access, Rig):
            raise FaultsUnavailableError("this needs the rig: unset SLMOPS_KUBECONFIG")
        return self.access

    @cached_property
    def kubectl(self) -> Kubectl:
        """The client itself."""
        return self.access.kubectl

    @cached_property
    def edge_nodes(self) -> tuple[str, ...]:
        """Names of the nodes labelled slmops.dev/edge=true, sorted."""
        return tuple(sorted(n["metadata"]["name"] for n in self.find_all("nodes", selector=EDGE_SELECTOR)))

    # Objects

    def apply(self, *objects: Mapping[str, Any], field_manager: str = "slmops-e2e") -> None:
        """Server-side apply."""
        self.kubectl.apply(*objects, field_manager=field_manager)

    def get(self, kind: str, name: str, *, namespace: str = "") -> Body | None:
        """The object, or None when there is none."""
        text = self.kubectl("get", kind, name, *_in(namespace), "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def need(self, kind: str, name: str, *, namespace: str = "") -> Body:
        """The object; raises RigError when there is none."""
        return dict(self.kubectl.get(kind, name, *_in(namespace)))

    def find_all(self, kind: str, *, namespace: str = "", selector: str = "") -> list[Body]:
        """Objects of a kind, of all namespaces when none is given."""
        where = _in(namespace) or ["-A"]
        return self.kubectl.items(kind, *where, *(["-l", selector] if selector else []))

    def patch(
        self, kind: str, name: str, patch: Mapping[str, Any] | list[Any], *, namespace: str = "",
        subresource: str = "",
    ) -> None:  # fmt: skip
        """Merge patch (a mapping) or JSON patch (a list)."""
        style = "merge" if isinstance(patch, Mapping) else "json"
        extra = [f"--subresource={subresource}"] if subresource else []
        self.kubectl("patch", kind, name, *_in(namespace), *extra, f"--type={style}", "-p", json.dumps(patch))

    def delete(self, kind: str, name: str, *, namespace: str = "", wait_seconds: float = 0) -> None:
        """Delete; what is gone already is fine. With `wait_seconds` also wait until it is gone."""
        self.kubectl("delete", kind, name, *_in(namespace), "--ignore-not-found", "--wait=false")
        if wait_seconds:
            self.wait_for(
                f"{kind} {name} being gone",
                lambda: self.get(kind, name, namespace=namespace) is None,
                timeout_seconds=wait_seconds,
                describe=lambda: str(self.get(kind, name, namespace=namespace))[:3000],
            )

    def make_namespace(self, name: str) -> None:
        """Create the namespace unless it is there."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def logs(self, namespace: str, pod: str, *, container: str = "", previous: bool = False) -> str:
        """A container's log; empty when there is none."""
        chosen = ["-c", container] if container else ["--all-containers"]
        return self.kubectl(
            "logs", "-n", namespace, pod, *chosen, *(["--previous"] if previous else []), check=False
        )

    def events(self, namespace: str, name: str) -> list[Body]:
        """Events about the object of that name, oldest first."""
        found = self.kubectl.items("events", "-n", namespace, f"--field-selector=involvedObject.name={name}")
        return sorted(found, key=lambda event: event["metadata"]["creationTimestamp"])

    # Patience

    def wait_for(
        self,
        what: str,
        probe: Callable[[], Found],
        *,
        timeout_seconds: float,
        describe: Callable[[], str] | None = None,
        interval_seconds: float = 0.5,
    ) -> Found:
        """Poll until `probe` gives something true and return it.

        A probe that fails because kubectl does is polled again: the API server may be away on purpose.
        Raises WaitError after the timeout, with what `describe` says.
        """
        limit = time.monotonic() + timeout_seconds
        error = ""
        while True:
            try:
                found = probe()
                error = ""
            except RigError as failure:
                found, error = None, str(failure)
            if found:
                return found
            if time.monotonic() > limit:
                break
            time.sleep(interval_seconds)
        said = error
        if describe is not None:
            try:
                said = f"{said}\n{describe()}"
            except RigError as failure:
                said = f"{said}\n{failure}"
        raise WaitError(f"{what} did not come about within {timeout_seconds:g} s\n{said.strip()}")

    def hold_for(self, what: str, probe: Callable[[], bool], *, seconds: float) -> None:
        """Check that something stays true for a while; raises WaitError when it does not."""
        begin = time.monotonic()
        while (age := time.monotonic() - begin) < seconds:
            if not probe():
                raise WaitError(f"{what} ended after {age:.1f} of {seconds:g} s")
            time.sleep(0.5)


def _in(namespace: str) -> list[str]:
    return ["-n", namespace] if namespace else []


def open_cluster() -> Cluster:
    """The cluster of SLMOPS_KUBECONFIG, or else the rig, brought up first if need be.

    An existing cluster needs nodes labelled slmops.dev/edge=true and, in SLMOPS_MODELS_URL, a web
    server with the folder e2e/models that its pods reach.
    """
    given = existing_cluster()
    if given is None:
        rig = Rig().up()
        return Cluster(rig, models_url=rig.models_url)
    url = os.environ.get(MODELS_URL_VARIABLE, "")
    if not url:
        raise RigError(f"set {MODELS_URL_VARIABLE} to a web server with the folder e2e/models")
    return Cluster(given, models_url=url.rstrip("/"))
