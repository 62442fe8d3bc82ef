# SPDX-License-Identifier: Apache-2.0
"""A namespace that is deleted takes its SLMDeployments with it at once, without a storm of refusals."""

import json
import logging
from datetime import UTC, datetime

import pytest

from slmops.adapters.errors import Forbidden, NamespaceEnding, error_from_status
from slmops.adapters.resources import NODES
from slmops.planning.names import Names
from slmops.planning.plan import plan
from tests.unit.runtime.fakes import NAME, NAMESPACE, store_deployment
from tests.unit.runtime.test_worker import Bench

_REFUSAL = {
    "kind": "Status",
    "reason": "Forbidden",
    "message": 'daemonsets.apps "f" is forbidden: unable to create new content in namespace t',
    "details": {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]},
}


def test_the_refusal_of_an_ending_namespace_is_told_apart() -> None:
    assert isinstance(error_from_status(403, json.dumps(_REFUSAL), what="apply"), NamespaceEnding)
    others: list[object] = [None, [], {"causes": None}, {"causes": ["x", {"reason": "FieldValueInvalid"}]}]
    for details in others:
        error = error_from_status(403, json.dumps(_REFUSAL | {"details": details}), what="apply")
        assert type(error) is Forbidden


async def test_no_cache_is_waited_for_where_no_pod_can_be_made(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(planner=plan, allowed=False)
    refusal = NamespaceEnding("apply: 403 forbidden", status=403, reason="Forbidden")
    bench.kube.fails = lambda line: refusal if line.startswith("apply ") else None
    now = datetime.fromtimestamp(bench.clock.now(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    names = Names(NAMESPACE, NAME)
    node = bench.kube.add(
        NODES,
        {
            "metadata": {"name": "n", "labels": {"edge": "true", names.serve_label("r1"): "int4"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        },
    )
    with caplog.at_level(logging.WARNING):
        async with bench.run() as worker:
            bench.cancel()
            world = worker._services.world
            world.take_in_deployment(store_deployment(bench.kube, deletionTimestamp=now))
            world.take_in_node(node)
            bench.allowed = True
            for _ in range(4):
                await worker._look_in_turn()
    refused = [line for line in bench.kube.log if line.startswith("apply ")]
    assert refused == [f"apply daemonsets/{NAME}-release failed"]
    assert bench.kube.objects[("nodes", "", "n")]["metadata"]["labels"] == {"edge": "true"}
    assert bench.kube.objects[("slmdeployments", NAMESPACE, NAME)]["metadata"]["finalizers"] == []
    assert not caplog.records
