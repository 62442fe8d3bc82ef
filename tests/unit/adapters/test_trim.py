# SPDX-License-Identifier: Apache-2.0
"""From whole objects to views."""

from typing import Any

import pytest

from slmops.adapters.trim import seconds_of, trim_node, trim_owned, trim_pod
from slmops.model.observed import DistributionView, OwnedKind
from slmwire.labels import DEPLOYMENT, REVISION, ROLE, SITE, VARIANT, Role
from slmwire.reasons import Reason, Termination


def _node(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": {"a": "b"}}, "status": status}


def test_node_is_ready_only_when_its_condition_says_true() -> None:
    def ready(status: str) -> bool:
        return trim_node(_node(conditions=[{"type": "Ready", "status": status}])).ready

    assert ready("True")
    assert not ready("False")
    assert not ready("Unknown")
    assert not trim_node(_node()).ready


@pytest.mark.parametrize(
    ("text", "size"), [("8007340Ki", 8007340 << 10), ("2Gi", 2 << 30), ("1e3", 0), ("16106127360", 15 << 30)]
)
def test_node_memory(text: str, size: int) -> None:
    assert trim_node(_node(allocatable={"memory": text})).allocatable_memory_bytes == size


def test_the_internal_address_is_kept() -> None:
    addresses = [
        {"type": "Hostname", "address": "n"},
        {"type": "InternalIP", "address": "10.0.0.7"},
        {"type": "InternalIP", "address": "fd00::7"},
    ]
    assert trim_node(_node(addresses=addresses)).address == "10.0.0.7"
    assert trim_node(_node(addresses=addresses[:1])).address == "" == trim_node(_node()).address


def test_the_content_of_a_config_map_is_told_by_a_digest() -> None:
    def content(text: str, at: str = "", key: str = "distribution.json") -> DistributionView | None:
        metadata = {"name": "c", "annotations": {"slmops.dev/written-at": at}}
        return trim_owned(OwnedKind.CONFIG_MAP, {"metadata": metadata, "data": {key: text}}).content

    assert content("{}", key="manifest.json") is None and content("nonsense") is None
    one, other = content("{}"), content("{ }", at="1970-01-01T00:01:00Z")
    assert one and other and one.digest != other.digest
    assert (one.limits, one.written_at, other.written_at) == ((0, 0), 0.0, 60.0)
    limited = content('{"rateLimitBytesPerSecond": 5, "peerPort": 8491}')
    assert limited and limited.limits == (5, 8491)


def test_heartbeats_do_not_change_a_node_view() -> None:
    def beat(at: str) -> dict[str, Any]:
        body = _node(
            conditions=[{"type": "Ready", "status": "True", "lastHeartbeatTime": at}],
            images=[{"names": [at]}],
        )
        body["metadata"]["resourceVersion"] = at
        return body

    assert trim_node(beat("1")) == trim_node(beat("2"))


def test_node_is_ready_since_its_condition_changed() -> None:
    def view(*conditions: dict[str, str]) -> float:
        return trim_node(_node(conditions=list(conditions))).ready_since

    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"}
    pressure = {"type": "DiskPressure", "status": "False", "lastTransitionTime": "1970-01-01T00:09:00Z"}
    assert view(pressure, ready) == 100
    assert view(pressure) == 0


def _pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "namespace": "ns",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {DEPLOYMENT: "orders", REVISION: "abc", VARIANT: "int4", ROLE: "prefetch"},
        },
        "spec": {"nodeName": "n"},
        "status": status,
    }


@pytest.mark.parametrize(("phase", "ended"), [("Running", False), ("Failed", True), ("Succeeded", True)])
def test_replica_of_a_site(phase: str, *, ended: bool) -> None:
    body = _pod(phase=phase)
    assert trim_pod(body).view.site == ""
    body["metadata"]["labels"][SITE] = "north"
    view = trim_pod(body).view
    assert (view.site, view.ended) == ("north", ended)


def test_pod_identity() -> None:
    pod = trim_pod(_pod(conditions=[{"type": "Ready", "status": "True"}]))
    assert (pod.namespace, pod.deployment) == ("ns", "orders")
    view = pod.view
    assert (view.node, view.revision, view.variant, view.role) == ("n", "abc", "int4", Role.PREFETCH)
    assert view.ready and not view.deleting
    assert view.created_at == seconds_of("2026-01-02T03:04:05Z") > 0


def test_only_a_serving_pod_s_address_is_kept() -> None:
    body = _pod(podIP="10.42.0.7")
    assert trim_pod(body).ip == ""
    body["metadata"]["labels"][ROLE] = "serve"
    assert trim_pod(body).ip == "10.42.0.7"
    assert trim_pod(body | {"status": {}}).ip == ""


def test_what_a_pod_s_server_speaks() -> None:
    body = _pod()
    assert trim_pod(body).scheme == "http"
    ports = [{"name": "https", "containerPort": 8080}]
    body["spec"]["containers"] = [{"name": "sidecar", "ports": ports}]
    assert trim_pod(body).scheme == "http"
    body["spec"]["containers"].append({"name": "server", "ports": ports})
    assert trim_pod(body).scheme == "https"


def test_a_pod_whose_volumes_are_not_there() -> None:
    body = _pod(
        phase="Pending",
        conditions=[
            {"type": "PodScheduled", "status": "True"},
            {"type": "PodReadyToStartContainers", "status": "False"},
        ],
    )
    assert trim_pod(body).view.unstarted
    body["status"]["phase"] = "Running"
    assert not trim_pod(body).view.unstarted


def test_unscheduled_pod_belongs_to_the_node_it_is_meant_for() -> None:
    body = _pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    field = {"key": "metadata.name", "operator": "In", "values": ["far"]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    body["spec"] = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}
    view = trim_pod(body).view
    assert view.node == "far"
    assert view.unschedulable


def test_init_container_that_crashes_is_what_is_seen() -> None:
    message = Termination(reason=Reason.INTEGRITY_MISMATCH, message="digest differs").to_json()
    ended = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-01-01T00:00:02Z"}
    view = trim_pod(
        _pod(
            initContainerStatuses=[
                {
                    "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": ended},
                }
            ],
            containerStatuses=[{"restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}],
        )
    ).view
    assert view.waiting_reason == "CrashLoopBackOff"
    assert (view.restarts, view.server_restarts) == (3, 0), "fetching again is no restart of the server"
    assert (view.last_exit_reason, view.last_exit_code) == ("Error", 1)
    assert view.termination is not None
    assert view.termination.reason == Reason.INTEGRITY_MISMATCH


def test_what_a_fetcher_said_before_it_succeeded_is_over() -> None:
    """The server was killed and left no message: the earlier failed download is not its cause."""
    message = Termination(reason=Reason.SOURCE_UNAVAILABLE, message="HTTP 503").to_json()
    failed = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-01-01T00:00:02Z"}
    fetched = {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:09Z"}
    killed = {"exitCode": 139, "reason": "Error", "finishedAt": "2026-01-01T00:00:20Z"}
    view = trim_pod(
        _pod(
            initContainerStatuses=[
                {
                    "restartCount": 1,
                    "state": {"terminated": fetched},
                    "lastState": {"terminated": failed},
                }
            ],
            containerStatuses=[
                {
                    "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": killed},
                }
            ],
        )
    ).view
    assert view.termination is None
    assert (view.waiting_reason, view.last_exit_code) == ("CrashLoopBackOff", 139)


def test_latest_failure_counts_and_success_does_not() -> None:
    def end(code: int, reason: str, second: int) -> dict[str, Any]:
        return {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T00:00:{second:02d}Z"}

    view = trim_pod(
        _pod(
            initContainerStatuses=[{"state": {"terminated": end(0, "Completed", 30)}}],
            containerStatuses=[
                {
                    "state": {"terminated": end(137, "OOMKilled", 20)},
                    "lastState": {"terminated": end(1, "Error", 10)},
                }
            ],
        )
    ).view
    assert (view.last_exit_reason, view.last_exit_code) == ("OOMKilled", 137)
    assert view.termination is None


def test_owned_object_keeps_metadata_only() -> None:
    body = {
        "metadata": {
            "name": "d",
            "namespace": "ns",
            "uid": "u",
            "generation": 3,
            "resourceVersion": "77",
            "labels": {DEPLOYMENT: "orders"},
            "ownerReferences": [{"uid": "owner"}],
        },
        "spec": {"big": "x" * 1000},
        "revision": 4,
        "data": {"a": 1},
    }
    daemon_set = trim_owned(OwnedKind.DAEMON_SET, body)
    # Its resourceVersion changes with every pod's status: only the generation tells drift.
    assert (daemon_set.generation, daemon_set.resource_version, daemon_set.data) == (3, "", None)
    assert daemon_set.owner_uids == {"owner"}
    assert daemon_set.replicas is None
    assert trim_owned(OwnedKind.SERVICE, body).resource_version == "77"
    scaled = trim_owned(OwnedKind.DEPLOYMENT, body | {"spec": {"replicas": 0}})
    assert (scaled.replicas, scaled.resource_version) == (0, "")
    revision = trim_owned(OwnedKind.CONTROLLER_REVISION, body)
    assert (revision.number, revision.data) == (4, {"a": 1})
