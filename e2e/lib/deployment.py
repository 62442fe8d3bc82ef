# SPDX-License-Identifier: Apache-2.0
"""One SLMDeployment on the cluster: apply it, look at it, wait for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from e2e.lib.manifests import build_deployment
from e2e.lib.observe import (
    assignments,
    condition,
    describe_pods,
    describe_resource,
    is_true,
    label_prefix,
    rollout_of,
)
from e2e.lib.release import operator_log
from e2e.lib.session import Body, Cluster

Found = TypeVar("Found")

KIND = "slmdeployments.slmops.dev"
# They bound failures: a busy machine takes several times what an idle one does.
INSTALL_SECONDS = 300.0
ROLLOUT_SECONDS = 420.0


@dataclass(slots=True)
class Deployment:
    """Handle of one SLMDeployment; `options` go to every manifest that it builds."""

    cluster: Cluster
    name: str
    namespace: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)

    # Writing

    def manifest(self, version: str, **changes: Any) -> Body:
        """The manifest of a version; `changes` are put over the handle's options."""
        return build_deployment(
            self.name, namespace=self.namespace, version=version, models_url=self.cluster.models_url,
            **(dict(self.options) | changes),
        )  # fmt: skip

    def apply(self, version: str, **changes: Any) -> None:
        """Apply the manifest of a version."""
        self.cluster.apply(self.manifest(version, **changes))

    def annotate(self, **annotations: str) -> None:
        """Set annotations below slmops.dev/."""
        patch = {"metadata": {"annotations": {f"slmops.dev/{k}": v for k, v in annotations.items()}}}
        self.cluster.patch(KIND, self.name, patch, namespace=self.namespace)

    def delete(self, *, wait_seconds: float = 60) -> None:
        """Delete it and wait until the finalizer has let it go."""
        self.cluster.delete(KIND, self.name, namespace=self.namespace)
        self.wait("the SLMDeployment being gone", lambda: self.find() is None, timeout_seconds=wait_seconds)

    # Reading

    def find(self) -> Body | None:
        """The object, or None when there is none."""
        return self.cluster.get(KIND, self.name, namespace=self.namespace)

    def read(self) -> Body:
        """The object."""
        return self.cluster.need(KIND, self.name, namespace=self.namespace)

    def status(self) -> Body:
        """Its status."""
        return dict(self.read().get("status", {}))

    def pods(self, role: str = "serve") -> list[Body]:
        """Its pods of one role."""
        selector = f"slmops.dev/deployment={self.name},slmops.dev/role={role}"
        return self.cluster.find_all("pods", namespace=self.namespace, selector=selector)

    def pod_on(self, node: str, *, role: str = "serve") -> Body:
        """The living pod on a node; raises LookupError when there is none."""
        for pod in self.pods(role):
            if pod["spec"].get("nodeName") == node and not pod["metadata"].get("deletionTimestamp"):
                return pod
        raise LookupError(f"no {role} pod of {self.name} on {node}")

    def training_pods(self) -> list[Body]:
        """Pods that train an adapter for it."""
        selector = f"slmops.dev/adaptation={self.name}"
        return self.cluster.find_all("pods", namespace=self.namespace, selector=selector)

    def _describe_training(self, pod: Body) -> str:
        logs = self.cluster.logs(self.namespace, pod["metadata"]["name"]).splitlines()[-12:]
        return "\n".join([describe_pods([pod]), *(f"    {line[:400]}" for line in logs)])

    def labels(self) -> dict[str, dict[str, str]]:
        """Per node its labels of this deployment, prefix cut off."""
        prefix = label_prefix(self.namespace, self.name)
        return assignments(self.cluster.find_all("nodes"), prefix=prefix)

    def assigned(self) -> dict[str, set[str]]:
        """Per node the revisions that it is to serve."""
        labels = self.labels()
        return {
            node: {key for key in own if "." not in key and key != "release"} for node, own in labels.items()
        }

    def service_address(self) -> str:
        """`http://<cluster address>:<port>` of its Service."""
        service = self.cluster.need("service", self.name, namespace=self.namespace)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def event_reasons(self) -> list[str]:
        """Reasons of the events about it, oldest first."""
        return [event["reason"] for event in self.cluster.events(self.namespace, self.name)]

    def describe(self) -> str:
        """Everything that helps to understand why something did not happen."""
        found = self.find()
        parts = [describe_resource(found) if found else f"there is no SLMDeployment {self.name}"]
        parts.append(f"  labels {self.labels()}")
        parts += [describe_pods(self.pods(role)) for role in ("serve", "prefetch", "release")]
        parts += [self._describe_training(pod) for pod in self.training_pods()]
        parts.append(operator_log(self.cluster, lines=25))
        return "\n".join(part for part in parts if part)

    # Waiting

    def wait(
        self, what: str, probe: Callable[[], Found], *, timeout_seconds: float, interval_seconds: float = 0.5
    ) -> Found:
        """Like `Cluster.wait_for`, with everything about this deployment in the failure."""
        return self.cluster.wait_for(
            f"{self.name}: {what}", probe, timeout_seconds=timeout_seconds, describe=self.describe,
            interval_seconds=interval_seconds,
        )  # fmt: skip

    def wait_status(self, what: str, accept: Callable[[Body], bool], *, timeout_seconds: float) -> Body:
        """Wait until the object, observed at its present generation, is accepted; return it."""

        def probe() -> Body | None:
            found = self.find()
            if found is None or not found.get("status"):
                return None
            current = found["status"].get("observedGeneration") == found["metadata"]["generation"]
            return found if current and accept(found) else None

        found = self.wait(what, probe, timeout_seconds=timeout_seconds)
        assert found is not None
        return found

    def wait_installed(self, *, timeout_seconds: float = INSTALL_SECONDS) -> Body:
        """Wait until its first (or present) revision is stable and Ready is True."""
        return self.wait_status(
            "being installed and Ready",
            lambda found: is_true(found, "Ready") and is_true(found, "RolloutSucceeded"),
            timeout_seconds=timeout_seconds,
        )

    def wait_promoted(self, version: str, *, timeout_seconds: float = ROLLOUT_SECONDS) -> Body:
        """Wait until the version is the stable one on all reachable nodes."""
        return self.wait_status(
            f"{version} being promoted",
            lambda found: (
                found["status"].get("modelVersion") == version
                and is_true(found, "RolloutSucceeded")
                and is_true(found, "Ready")
                and condition(found, "Progressing").get("reason") == "Complete"
            ),
            timeout_seconds=timeout_seconds,
        )

    def wait_rolled_back(self, *, timeout_seconds: float = ROLLOUT_SECONDS) -> Body:
        """Wait until the rollout has failed and every reachable node is back."""
        return self.wait_status(
            "being rolled back",
            lambda found: rollout_of(found).get("step") == "Failed" and is_true(found, "Ready"),
            timeout_seconds=timeout_seconds,
        )

    def wait_step(
        self, *steps: str, wave: int | None = None, timeout_seconds: float = ROLLOUT_SECONDS
    ) -> Body:
        """Wait until the rollout is in one of the steps (and in that wave)."""
        return self.wait_status(
            f"reaching {' or '.join(steps)}",
            lambda found: (
                rollout_of(found).get("step") in steps and wave in (None, rollout_of(found).get("wave"))
            ),
            timeout_seconds=timeout_seconds,
        )
