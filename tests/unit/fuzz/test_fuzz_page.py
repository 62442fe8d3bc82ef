# SPDX-License-Identifier: Apache-2.0
"""Whatever a spec or a status holds, the fleet page has documents of it: one odd object hides no other."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.runtime.resource import DeploymentKey
from tests.unit.fuzz.bodies import schema_of, specs_of
from tests.unit.fuzz.budget import examples
from tests.unit.fuzz.grammar import damaged, instances, values
from tests.unit.page.kit import KitFleet, measurement, rolling_status, settled_status

KIND = "SLMDeployment"
NUMBERS = st.one_of(st.floats().map(repr), st.sampled_from(["1.7e308", "-1.7e308"]))
KEY = DeploymentKey("ns", "orders")


def read(spec: Any, status: Any) -> None:
    fleet = KitFleet()
    for number in range(3):
        fleet.node(f"n{number}", site=f"s{number % 2}", slm="yes")
    for revision in ("one", "two"):
        fleet.revision(KEY, revision)
    fleet.pod(KEY, "n0", "two")
    fleet.pod(KEY, "n1", "one", message="x")
    meta = {"name": "orders", "namespace": "ns", "uid": "uid-orders", "resourceVersion": "999"}
    assert fleet.world.take_in_deployment({"metadata": meta, "spec": spec, "status": status})
    build = fleet.source.take_deployment(KEY)
    assert build is not None
    for text in (fleet.source.take_overview()(), build()):
        json.loads(text, parse_constant=lambda name: 1 / 0)


@examples(60)
@given(spec=st.one_of(values, damaged(specs_of(KIND))))
def test_any_spec_has_documents(spec: Any) -> None:
    read(spec, rolling_status())


@examples(60)
@given(
    status=st.one_of(
        values,
        damaged([rolling_status(), settled_status()]),
        instances(schema_of(KIND)["properties"]["status"]),
    )
)
def test_any_status_has_documents(status: Any) -> None:
    read(specs_of(KIND)[0], status)


@examples(60)
@given(numbers=st.lists(NUMBERS, min_size=4, max_size=4), more=st.sampled_from(["0.1", "50%"]))
def test_any_numbers_of_a_device_are_told_as_json(numbers: list[str], more: str) -> None:
    metrics = [
        {"name": "latency", "preset": "LatencyP95", "maxDegradation": more},
        {"name": "quality", "preset": "EvaluationScore", "maxDegradation": more},
    ]
    measured = [
        measurement("latency", 20, numbers[0], numbers[1]),
        measurement("quality", 20, numbers[2], numbers[3]),
    ]
    spec = specs_of(KIND)[0] | {"rollout": {"analysis": {"metrics": metrics}}}
    read(spec, rolling_status(measurements=measured))
