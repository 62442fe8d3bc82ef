# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy of pods that train adapters: nothing in, nothing out, for as long as there is one."""

from typing import Any

import pytest

from e2e.checks.network_policy import Connection, Endpoint, is_allowed
from slmops.api import SLMDeploymentSpec
from slmops.model.config import NetworkConfig, OperatorConfig
from slmops.model.jobs import JobPodView
from slmops.model.observed import OwnedKind, OwnedView
from slmops.planning.names import Names
from slmops.planning.network import CONTENT, MISSING, apply_policies, build_train_policy, policy_names
from slmwire import labels
from slmwire.labels import Role
from tests.unit.planning.fleet_spec import spec_body

NAMES = Names("slm", "orders")
CONFIG = OperatorConfig(runtime_image="runtime:1")
TRAIN = "orders-train"
_SPACE = {"kubernetes.io/metadata.name": "slm"}


def pod(address: str, **tags: str) -> Endpoint:
    ours = {labels.MANAGED_BY: labels.MANAGED_BY_VALUE}
    tags = {f"{labels.DOMAIN}/{key}": value for key, value in tags.items()}
    return Endpoint(address=address, namespace="slm", labels=ours | tags, namespace_labels=_SPACE)


TRAINING = pod("10.42.1.17", adaptation="orders", work="train")
OTHERS = pod("10.42.1.18", adaptation="others", work="train")
SERVING = pod("10.42.1.7", deployment="orders", role=Role.SERVE.value)
INTERNET = Endpoint(address="203.0.113.80")
ADAPTED: dict[str, Any] = {"adaptation": {"sites": ["north"]}}


def spec(**fields: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(spec_body() | fields)


def written(found: SLMDeploymentSpec, *owned: OwnedView, config: OperatorConfig = CONFIG) -> dict[str, str]:
    """Name of each policy that is written, and why."""
    actions = apply_policies(NAMES, found, config, revisions=(), nodes=(), owned=owned)
    return {action.name: action.why for action in actions}


@pytest.mark.parametrize("peer", [SERVING, INTERNET])
def test_a_training_reaches_nobody_and_nobody_reaches_it(peer: Endpoint) -> None:
    rules = [build_train_policy(NAMES)]
    for source, target in ((TRAINING, peer), (peer, TRAINING)):
        assert not is_allowed(Connection(source=source, target=target, port=443, protocol="TCP"), rules)
    for source, target in ((OTHERS, peer), (peer, OTHERS)):
        connection = Connection(source=source, target=target, port=443, protocol="TCP")
        assert is_allowed(connection, rules), "it says nothing about other pods"


def test_it_is_there_with_adaptation_whatever_the_administrator_keeps_for_others() -> None:
    off = OperatorConfig(runtime_image="runtime:1", network=NetworkConfig(default_mode="None"))
    assert TRAIN not in written(spec())
    assert written(spec(**ADAPTED)) == {"orders-confine": MISSING, "orders-fetch": MISSING, TRAIN: MISSING}
    assert written(spec(**ADAPTED), config=off) == {TRAIN: MISSING}
    assert written(spec(**ADAPTED, privacy={"networkPolicy": "None"})) == {}


def test_it_is_written_once_and_repaired() -> None:
    content = build_train_policy(NAMES)["metadata"]["annotations"][CONTENT]
    there = OwnedView(kind=OwnedKind.NETWORK_POLICY, name=TRAIN, digest=content)
    assert TRAIN not in written(spec(**ADAPTED), there)
    other = OwnedView(kind=OwnedKind.NETWORK_POLICY, name=TRAIN, digest=content, drifted=True)
    assert written(spec(**ADAPTED), other)[TRAIN] == "changed by somebody else"


def test_it_stays_until_the_last_pod_is_gone() -> None:
    ending = JobPodView(name="orders-train-x", job="orders-train", deleting=True)
    assert TRAIN in policy_names(NAMES, spec(**ADAPTED), CONFIG)
    assert TRAIN in policy_names(NAMES, spec(), CONFIG, job_pods=[ending])
    assert TRAIN not in policy_names(NAMES, spec(), CONFIG)
