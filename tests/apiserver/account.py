# SPDX-License-Identifier: Apache-2.0
"""The operator's own account: what it may do is what the chart gives it, and the node policy is in force."""

from pathlib import Path
from typing import Any, Final

import yaml

from e2e.checks.helm import NAMESPACE, RELEASE, objects, render_chart
from e2e.lib.account import MERGE_PATCH, account_of, token_of
from e2e.rig import ControlPlane
from e2e.rig.progress import wait_until

ACCOUNT: Final = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
POLICY: Final = f"ValidatingAdmissionPolicy '{RELEASE}-node-labels'"
_LEFT_OUT: Final = ("CustomResourceDefinition", "Deployment")


def install_account(plane: ControlPlane) -> Path:
    """Apply the chart's account, permissions and node policy; a kubeconfig of that account."""
    bodies = [body for body in objects(render_chart()) if body["kind"] not in _LEFT_OUT]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    plane.kubectl.apply(namespace, *bodies)
    token = plane.kubectl("create", "token", RELEASE, "-n", NAMESPACE, "--duration=2h").strip()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    path = plane.directory / "operator.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    # RBAC and policies are in force a moment after they were stored.
    wait_until(
        "the node policy being in force", lambda: _is_policy_in_force(plane, path), timeout_seconds=120
    )
    return path


def _is_policy_in_force(plane: ControlPlane, kubeconfig: Path) -> bool:
    name = "policy-probe"
    plane.kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    try:
        patch = {"metadata": {"labels": {"a": "b"}}}
        # Not by `kubectl patch`, which reads the node first: the operator may not.
        _, words = account_of(kubeconfig, token_of(kubeconfig)).ask(
            "PATCH", f"/api/v1/nodes/{name}", patch, form=MERGE_PATCH
        )
        return POLICY in words
    finally:
        plane.kubectl("delete", "node", name)


def lease_permission(namespace: str) -> list[dict[str, Any]]:
    """The chart's permission for the operator's Lease, in the namespace of a test."""
    found = [b for b in objects(render_chart()) if b["metadata"]["name"] == f"{RELEASE}-lease"]
    return [body | {"metadata": {"name": body["metadata"]["name"], "namespace": namespace}} for body in found]
