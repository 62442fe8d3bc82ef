# SPDX-License-Identifier: Apache-2.0
"""No spec, status, annotation, node or pod makes the operator stumble: there is always a plan that the API
server takes, or a condition that says what is wrong."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.model.observed import OwnedKind
from tests.unit.fuzz import objects
from tests.unit.fuzz.bodies import schema_of, specs_of
from tests.unit.fuzz.budget import examples
from tests.unit.fuzz.grammar import ODD_TEXT, damaged, instances, text, values
from tests.unit.fuzz.robot import Robot

KIND = "SLMDeployment"
ANNOTATIONS = [
    "slmops.dev/paused", "slmops.dev/retry", "slmops.dev/promote", "slmops.dev/skip", "slmops.dev/abort",
    "slmops.dev/undo", "slmops.dev/accept",
]  # fmt: skip
annotations = st.dictionaries(
    st.sampled_from(ANNOTATIONS), st.one_of(text, st.sampled_from(["true", "canary", "1", "r/1"])), max_size=3
)


def spec_schema(kind: str = KIND) -> Any:
    return schema_of(kind)["properties"]["spec"]


def sound_nodes() -> dict[str, Any]:
    return {
        f"n{index}": {
            "metadata": {"name": f"n{index}", "labels": {"slm": "yes", "site": f"s{index % 2}"}},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": None}],
                "allocatable": {"memory": "8Gi"},
            },
        }
        for index in range(3)
    }


def run(robot: Robot, looks: int = 5) -> None:
    for _ in range(looks):
        robot.look()
        robot.now += 40


@examples(100)
@given(spec=st.one_of(values, damaged(specs_of(KIND))), given_annotations=annotations)
def test_any_spec_is_planned_or_refused_by_name(spec: Any, given_annotations: dict[str, str]) -> None:
    run(Robot(spec, annotations=given_annotations, nodes=sound_nodes()))


@examples(40)
@given(data=st.data(), fails=st.booleans())
def test_any_spec_that_the_schema_allows(data: st.DataObject, fails: bool) -> None:
    # Two sections at a time: a whole spec takes long to draw, and is refused for its first fault.
    parts = spec_schema()["properties"]
    chosen = data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2))
    spec = data.draw(st.sampled_from(specs_of(KIND))) | {
        name: data.draw(instances(parts[name])) for name in chosen
    }
    spec["placement"] = {**spec.get("placement", {}), "nodeSelector": {}}
    run(Robot(spec, nodes=sound_nodes(), fails=fails))


@examples(40)
@given(data=st.data())
def test_any_status_is_read_or_refused_by_name(data: st.DataObject) -> None:
    robot = Robot(data.draw(st.sampled_from(specs_of(KIND))), nodes=sound_nodes())
    run(robot, 4)
    robot.status = data.draw(
        st.one_of(
            damaged([robot.status]),
            values,
            instances(schema_of(KIND)["properties"]["status"]),
            st.fixed_dictionaries({"rollout": instances(_rollout_status())}).map(lambda s: robot.status | s),
        )
    )
    run(robot, 3)
    robot.deleting = True
    run(robot, 3)


def _rollout_status() -> Any:
    return schema_of(KIND)["properties"]["status"]["properties"]["rollout"]


@examples(50)
@given(data=st.data())
def test_hostile_nodes_and_pods_are_planned_with(data: st.DataObject) -> None:
    robot = Robot(data.draw(st.sampled_from(specs_of(KIND))))
    robot.spec = robot.spec | {"placement": {"siteLabel": "site"} | robot.spec.get("placement", {})}
    robot.nodes = {f"n{index}": data.draw(objects.nodes(f"n{index}")) for index in range(3)}
    run(robot, 4)
    workloads = [body for (kind, _), body in robot.objects.items() if kind is OwnedKind.DAEMON_SET]
    for _ in range(3):
        robot.pods = [
            data.draw(objects.pods(f"p{index}", f"n{index % 3}", _marks(workloads, index)))
            for index in range(data.draw(st.integers(0, 4)))
        ]
        run(robot, 2)


def _marks(workloads: list[Any], index: int) -> dict[str, str]:
    if not workloads:
        return {}
    found: dict[str, str] = workloads[index % len(workloads)]["spec"]["template"]["metadata"]["labels"]
    return found


@examples(35)
@given(profile=st.one_of(values, damaged(specs_of("DeviceProfile")), instances(spec_schema("DeviceProfile"))))
def test_any_device_profile_is_worked_in_or_left_out(profile: Any) -> None:
    bodies = [{"metadata": {"name": "odd"}, "spec": profile}]
    run(Robot(specs_of(KIND)[-1], nodes=sound_nodes(), profiles=bodies), 4)


@examples(35)
@given(data=st.data())
def test_revisions_that_somebody_changed_are_read(data: st.DataObject) -> None:
    robot = Robot(specs_of(KIND)[-1], nodes=sound_nodes())
    run(robot, 4)
    for (kind, _), body in robot.objects.items():
        if kind in (OwnedKind.CONTROLLER_REVISION, OwnedKind.CONFIG_MAP):
            body["data"] = data.draw(st.one_of(damaged([body["data"]]), values.filter(lambda v: v != [])))
            if kind is OwnedKind.CONFIG_MAP:  # the API server holds text alone
                body["data"] = {"distribution.json": data.draw(st.one_of(text, st.sampled_from(ODD_TEXT)))}
            body.setdefault("metadata", {})
    run(robot, 3)
