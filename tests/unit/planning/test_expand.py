# SPDX-License-Identifier: Apache-2.0
"""From written to effective specs: what profiles change, and that nothing else changes anything."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from slmops import api
from slmops.api import SLMDeploymentSpec
from slmops.api.profile import Accelerator
from slmops.model.config import OperatorConfig
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.model.offers import Measured, OfferedVariant, OfferedVersion
from slmops.planning import build
from slmops.planning.effective import EffectiveSpec, choose, find_rule, profile_of, rules_of
from slmops.planning.expand import MAX_NAME_LENGTH, ExpansionError, expand_spec, find_used
from slmops.planning.fit import build_candidates
from slmops.planning.names import Names
from slmops.planning.needs import assess_needs, with_requests
from slmops.planning.revision import build_revision_data, parse_revision, revision_of, source_hash
from tests.unit.planning.profile_kit import GIB, body_of, files, node, profile, variant

ROOT = Path(__file__).parents[3]
CONFIG = OperatorConfig(runtime_image="slmops/runtime:1", engine_images={"openvino": "slmops/openvino:1"})
GOLDEN = Path(__file__).with_name("stored_specs.json")


def spec_of(*variants: dict[str, Any], **changes: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(body_of(*variants, **changes))


def expanded(spec: SLMDeploymentSpec, *profiles: ProfileView, **known: Resolved) -> SLMDeploymentSpec:
    by_hash = {source_hash(v.source): known[v.name] for v in spec.variants if v.name in known}
    return expand_spec(spec, profiles=profiles, known=by_hash)


def names_of(spec: SLMDeploymentSpec, profile_name: str = "") -> list[str]:
    return [v.name for v in spec.variants if profile_of(v) == profile_name]


def digests(spec: SLMDeploymentSpec) -> dict[str, str]:
    return {v.name: "sha256:" + "0" * 64 for v in spec.variants}


def test_what_the_release_before_stored_keeps_its_revision() -> None:
    """Golden values of the release before profiles, of all examples and as the API server had stored them."""
    stored = json.loads(GOLDEN.read_text())
    assert len(stored) >= 4
    for name, entry in stored.items():
        spec = SLMDeploymentSpec.model_validate(entry["spec"])
        assert expand_spec(spec, known={}) is spec, name
        assert revision_of(spec, digests(spec)) == entry["revision"], name


@pytest.mark.parametrize("path", sorted((ROOT / "manifests/examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_without_profiles_and_overrides_a_spec_is_what_it_is(path: Path) -> None:
    for body in yaml.safe_load_all(path.read_text()):
        if body.get("kind") == api.KIND and not body["spec"].get("overrides"):
            spec = SLMDeploymentSpec.model_validate(body["spec"])
            assert expand_spec(spec, known={}) is spec


def test_fields_that_came_later_are_absent_until_they_are_set() -> None:
    body = spec_of(variant("int4")).variants[0].to_body()
    assert set(body) == {"name", "source", "nodeSelector", "resources", "memory"}
    assert "engine" not in spec_of().runtime.to_body() and "from" not in spec_of().model.to_body()


def test_one_variant_for_each_profile_and_one_for_nodes_of_none() -> None:
    pi, orin = profile("pi"), profile("orin", priority=5)
    spec = expanded(spec_of(variant("int4"), variant("fp16")), pi, orin)
    assert [v.name for v in spec.variants] == [
        "int4-orin", "fp16-orin", "int4-pi", "fp16-pi", "int4", "fp16",
    ]  # fmt: skip
    assert [rule.name for rule in rules_of(spec)] == ["orin", "pi"]


def test_the_highest_priority_counts_and_then_the_name() -> None:
    anywhere: dict[str, Any] = {"nodeSelector": {}}
    profiles = [
        profile("b", **anywhere), profile("a", **anywhere), profile("z", priority=1, device="pi")
    ]  # fmt: skip
    rules = rules_of(expanded(spec_of(variant("int4")), *profiles))
    for device, expected in (("pi", "z"), ("other", "a")):
        rule = find_rule(rules, {"device": device})
        assert rule is not None and rule.name == expected


@pytest.mark.parametrize(
    ("labels", "matches"),
    [
        ({"kubernetes.io/arch": "arm64", "slmops.dev/accelerator": "orin"}, True),
        ({"kubernetes.io/arch": "amd64", "slmops.dev/accelerator": "orin"}, False),
        ({"kubernetes.io/arch": "arm64", "slmops.dev/accelerator": "hailo"}, False),
        ({"kubernetes.io/arch": "arm64"}, False),
        ({"slmops.dev/accelerator": "orin"}, False),
    ],
)
def test_architecture_and_accelerator_are_labels(labels: dict[str, str], *, matches: bool) -> None:
    orin = profile("orin", nodeSelector={}, architectures=["arm64"], accelerator={"value": "orin"})
    (rule,) = rules_of(expanded(spec_of(variant("int4")), orin))
    assert rule.is_of(labels) is matches


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ({}, ["fp16", "int4", "int8"]),
        ({"prefer": ["int4", "int*"]}, ["int4", "int8", "fp16"]),
        ({"prefer": ["int?"]}, ["int4", "int8", "fp16"]),
        ({"prefer": ["none", "int8"]}, ["int8", "fp16", "int4"]),
        ({"strategy": "Smallest"}, ["int4", "int8", "fp16"]),
        ({"strategy": "Fastest"}, ["int4", "int8", "fp16"]),
        ({"strategy": "BestQuality"}, ["fp16", "int8", "int4"]),
    ],
)
def test_the_profile_orders_the_variants(preference: dict[str, Any], expected: list[str]) -> None:
    spec = spec_of(variant("fp16"), variant("int4"), variant("int8"))
    known = {
        name: files(("model.onnx", size)) for name, size in (("fp16", 900), ("int4", 300), ("int8", 500))
    }
    effective = expanded(spec, profile("pi", variants=preference), **known)
    assert names_of(effective, "pi") == [f"{name}-pi" for name in expected]
    assert names_of(effective) == ["fp16", "int4", "int8"], "nodes of no profile go by the written order"


def test_measured_numbers_count_before_sizes() -> None:
    source = spec_of(variant("x")).variants[0].source

    def offered(name: str, size: int, **measured: Any) -> OfferedVariant:
        values = {"pi": Measured(**measured)} if measured else {}
        return OfferedVariant(name=name, source=source, size_bytes=size, measured=values)

    version = OfferedVersion(
        version="3",
        accepted=True,
        variants=(
            offered("small", 100, quality=0.5, decode_tokens_per_second=5.0),
            offered("large", 900, quality=0.9, decode_tokens_per_second=9.0),
            offered("unmeasured", 500),
        ),
    )
    spec = spec_of(model={"name": "orders", "from": {"name": "m"}})
    for strategy, expected in {
        "BestQuality": ["large", "small", "unmeasured"],
        "Fastest": ["large", "small", "unmeasured"],
        "Smallest": ["small", "unmeasured", "large"],
    }.items():
        pi = profile("pi", variants={"strategy": strategy})
        effective = expand_spec(spec, profiles=[pi], known={}, offered=version)
        assert names_of(effective, "pi") == [f"{name}-pi" for name in expected]
        assert effective.model.version == "3"


def test_a_variant_for_some_profiles_is_for_no_other_node() -> None:
    spec = spec_of(variant("int4"), variant("npu", profiles=["orin"]))
    effective = expanded(spec, profile("pi"), profile("orin"))
    assert names_of(effective, "pi") == ["int4-pi"]
    assert names_of(effective, "orin") == ["int4-orin", "npu-orin"]
    assert names_of(effective) == ["int4"]


def test_nothing_left_is_said_with_the_cure() -> None:
    with pytest.raises(ExpansionError, match="no DeviceProfile orin takes a variant"):
        expanded(spec_of(variant("npu", profiles=["orin"])), profile("pi"))


def test_a_profile_takes_no_variant_for_another_engine() -> None:
    spec = spec_of(variant("gguf"), variant("onnx"), variant("told", engine="openvino"), variant("unknown"))
    known = {
        "gguf": files(("model.gguf", 5)),
        "onnx": files(("genai_config.json", 1), ("model.onnx", 5)),
    }
    llama, ort = profile("l", engine="llama.cpp"), profile("o", engine="onnxruntime")
    effective = expanded(spec, llama, ort, profile("any"), profile("auto", engine="auto"), **known)
    assert names_of(effective, "l") == ["gguf-l", "unknown-l"]
    assert names_of(effective, "o") == ["onnx-o", "unknown-o"]
    assert len(names_of(effective, "any")) == len(names_of(effective, "auto")) == 4
    engines = {v.name: v.engine for v in effective.variants}
    assert (engines["gguf-l"], engines["gguf-any"], engines["told-auto"], engines["gguf-auto"]) == (
        "llama.cpp", None, "openvino", "auto",
    )  # fmt: skip


def test_settings_go_from_the_variant_over_the_deployment_to_the_profile() -> None:
    own = {"threads": 3}
    spec = spec_of(variant("int4", runtime=own), variant("fp16"), runtime={"slots": 8})
    pi = profile("pi", runtime={"threads": 2, "slots": 1, "contextLength": 1024})
    effective = {v.name: v for v in expanded(spec, pi).variants}
    first, second = effective["int4-pi"].runtime, effective["fp16-pi"].runtime
    assert first is not None and second is not None
    assert (first.threads, first.slots, first.context_length) == (3, None, 1024)
    assert (second.threads, second.slots, second.context_length) == (2, None, 1024)
    assert effective["fp16"].runtime is None


def test_resources_of_the_profile_fill_what_the_variant_leaves_open() -> None:
    given = {"requests": {"memory": "2Gi"}, "limits": {"cpu": "1"}}
    spec = spec_of(variant("a", resources=given), variant("b"))
    resources = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "512Mi", "cpu": "4"}}
    effective = {
        v.name: v.resources for v in expanded(spec, profile("pi", runtime={"resources": resources})).variants
    }
    assert effective["a-pi"].requests.to_body() == {"cpu": "1", "memory": "512Mi"}, "never above a limit"
    assert effective["a-pi"].limits.to_body() == {"cpu": "1", "memory": "512Mi"}
    assert effective["b-pi"].requests.to_body() == {"cpu": "2", "memory": "512Mi"}
    assert effective["b"].requests.to_body() == {"cpu": "100m"}


def test_names_of_pairs_are_short_and_told_apart() -> None:
    long = "p" * 40
    spec = spec_of(variant("a-b"), variant("a"), variant("a-b-c"), variant("v" * 20))
    effective = expanded(spec, profile("c"), profile("b-c"), profile(long))
    names = [v.name for v in effective.variants]
    assert len(names) == len(set(names)) == 16
    assert max(map(len, names)) <= MAX_NAME_LENGTH
    again = expanded(spec, profile("c"), profile("b-c"), profile(long))
    assert [v.name for v in again.variants] == names


def test_too_many_combinations_are_refused_with_the_cure() -> None:
    spec = spec_of(*(variant(f"v{index}") for index in range(8)))
    with pytest.raises(ExpansionError, match=r"72 combinations, at most 64 .* variants\[\].profiles"):
        expanded(spec, *(profile(f"p{index}") for index in range(8)))


def test_replicas_know_no_profiles() -> None:
    spec = spec_of(variant("int4"), placement={"mode": "Replicas", "nodeSelector": {}})
    assert expanded(spec, profile("pi")) is spec


def revision(spec: SLMDeploymentSpec, *profiles: ProfileView) -> str:
    effective = expanded(spec, *profiles)
    return revision_of(effective, digests(effective))


@pytest.mark.parametrize(
    "change",
    [
        {"variants": {"prefer": ["fp16"]}},
        {"budgets": {"memory": "50%"}},
        {"budgets": {"disk": "1Gi"}},
        {"engine": "auto"},
        {"engineImage": "mine:1"},
        {"runtime": {"slots": 1}},
        {"architectures": ["arm64"]},
        {"nodeSelector": {"matchLabels": {"device": "other"}}},
    ],
)
def test_what_changes_the_choice_changes_the_revision(change: dict[str, Any]) -> None:
    spec = spec_of(variant("int4"), variant("fp16"))
    assert revision(spec, profile("pi", **change)) != revision(spec, profile("pi"))


@pytest.mark.parametrize(
    "change", [{"powerMode": "15W"}, {"powerWatts": {"idle": "3", "busy": "9.5"}}, {"priority": 7}]
)
def test_what_changes_no_pod_keeps_the_revision(change: dict[str, Any]) -> None:
    spec = spec_of(variant("int4"))
    assert revision(spec, profile("pi", **change)) == revision(spec, profile("pi"))


def test_who_named_the_files_is_no_part_of_the_revision() -> None:
    version = OfferedVersion(
        version="2.1",
        accepted=True,
        variants=(OfferedVariant(name="int4", source=spec_of(variant("x")).variants[0].source),),
    )
    found = {
        revision_of(effective, digests(effective))
        for source in ({"name": "m"}, {"name": "m", "version": "2.1"}, {"name": "m", "versionPattern": "2.*"})
        for spec in [spec_of(model={"name": "orders", "from": source})]
        for effective in [expand_spec(spec, known={}, offered=version)]
    }
    assert len(found) == 1


def test_a_revision_with_profiles_comes_back_whole() -> None:
    spec = expanded(
        spec_of(variant("int4"), variant("fp16", "3Gi")),
        profile("pi", budgets={"memory": "50%", "disk": "2Gi"}, engine="openvino"),
        profile("orin", engineImage="orin:1"),
    )
    resolved = {v.name: files(("model.onnx", 1000), ("config.json", 2)) for v in spec.variants}
    needs = assess_needs(spec, resolved)
    filled = with_requests(spec, needs)
    templates = build.build_templates(
        Names("shop", "orders"),
        filled,
        config=CONFIG,
        revision="0123456789",
        digests={v.name: resolved[v.name].manifest.digest for v in spec.variants},
        references={v.name: "" for v in spec.variants},
    )
    data = json.loads(
        json.dumps(build_revision_data(filled, resolved=resolved, templates=templates, needs=needs))
    )
    assert sum("manifest" in entry for entry in data["variants"]) == 1, "equal files are stored once"
    found = parse_revision("0123456789", 1, data)
    assert isinstance(spec, EffectiveSpec)
    assert list(found.profiles) == spec.profiles
    assert {v.name: v.profile for v in found.variants} == {v.name: profile_of(v) for v in spec.variants}
    assert {v.name: v.need for v in found.variants} == needs
    assert all(v.manifest == resolved[v.name].manifest for v in found.variants)
    by_name = {v.name: v for v in found.variants}
    assert by_name["fp16-pi"].memory_bytes == 3 * GIB + (100 << 20)

    def container(name: str) -> dict[str, Any]:
        result: dict[str, Any] = by_name[name].serve_template["spec"]["containers"][0]
        return result

    images = {name: container(name)["image"] for name in by_name}
    assert images["int4-pi"] == "slmops/openvino:1", "the operator's image for the engine"
    assert images["int4-orin"] == "orin:1" and images["int4"] == "slmops/runtime:1"
    env = {entry["name"]: entry.get("value") for entry in container("int4-pi")["env"]}
    assert env["SLM_ENGINE"] == "openvino"
    assert "SLM_ENGINE" not in {entry["name"] for entry in container("int4")["env"]}


def test_the_image_of_the_deployment_counts_before_every_other() -> None:
    spec = expanded(spec_of(variant("int4"), runtime={"image": "mine:1"}), profile("pi", engineImage="a:1"))
    templates = build.build_templates(
        Names("shop", "orders"), spec, config=CONFIG, revision="0", digests=digests(spec),
        references={v.name: "" for v in spec.variants},
    )  # fmt: skip
    assert {serve["spec"]["containers"][0]["image"] for serve, _ in templates.values()} == {"mine:1"}


@pytest.mark.parametrize("delivery", ["Pull", "ImageVolume"])
def test_auto_measures_on_the_node_before_the_server_starts(delivery: str) -> None:
    source = {"oci": {"image": "registry.example/m:1", "delivery": delivery}}
    spec = spec_of(
        variant("int4", engine="auto", source=source, resources={"limits": {"memory": "1Gi"}}),
    )
    serve, prefetch = build.build_templates(
        Names("shop", "orders"), spec, config=CONFIG, revision="0", digests=digests(spec),
        references={"int4": "registry.example/m@sha256:0"},
    )["int4"]  # fmt: skip
    choose_ = serve["spec"]["initContainers"][-1]
    server = serve["spec"]["containers"][0]
    assert choose_["name"] == "choose"
    assert choose_["command"] == ["python3", "-m", "slmserve"]
    assert choose_["args"] == ["choose", "--model-dir", "/model", "--out", "/choice/engine.json"]
    assert choose_["resources"] == server["resources"] and choose_["image"] == server["image"]
    assert choose_["securityContext"] == server["securityContext"]
    for container in (choose_, server):
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        assert mounts["/model"] is True and mounts["/choice"] is (container is server)
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["SLM_ENGINE"] == "auto" and env["SLM_ENGINE_CHOICE_FILE"] == "/choice/engine.json"
    names = [volume["name"] for volume in serve["spec"]["volumes"]]
    assert names.count("choice") == 1
    assert {m["name"] for c in (choose_, server) for m in c["volumeMounts"]} <= set(names)
    assert "choice" not in {volume["name"] for volume in prefetch["spec"]["volumes"]}


def test_only_profiles_that_a_node_is_of_are_worked_in() -> None:
    spec = spec_of(variant("int4"))
    pi, orin = profile("pi"), profile("orin")
    shadowed = profile("shadowed", device="pi", priority=-1)
    nodes: list[NodeView] = [
        node("n", device="pi"),
        NodeView(name="x", labels={"device": "orin"}, ready=True),
    ]

    def used(*kept: str) -> list[str]:
        return [p.name for p in find_used(spec, [orin, shadowed, pi], nodes=nodes, kept=kept)]

    assert used() == ["pi"]
    assert used("orin", "gone") == ["orin", "pi"]


def test_a_node_of_a_profile_takes_no_variant_of_another() -> None:
    spec = expanded(spec_of(variant("int4", "3Gi")), profile("pi", budgets={"memory": "2Gi"}))
    candidates = build_candidates(spec, {})
    assert choose(candidates, rules_of(spec), node("n", device="pi")) is None
    found = choose(candidates, rules_of(spec), node("n"))
    assert found is not None and found.name == "int4"


@pytest.mark.parametrize("label", ["two words", "a/b/c", "-x", "UPPER.example/x", "x/", "x\ny"])
def test_a_label_that_no_node_can_have_is_refused(label: str) -> None:
    with pytest.raises(ValidationError):
        Accelerator(label=label, value="orin")
    assert Accelerator(label="nvidia.com/gpu.family", value="orin").label
