# SPDX-License-Identifier: Apache-2.0
"""`spec.overrides[]`: which counts for a node, what it makes of a variant, and what is a new revision."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.api.overrides import Override
from slmops.model.config import OperatorConfig
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.planning import build
from slmops.planning.effective import choose, find_rule, override_of, profile_of, rules_of, selected_for
from slmops.planning.expand import MAX_NAME_LENGTH, ExpansionError, expand_spec
from slmops.planning.fit import assess_fit, build_candidates
from slmops.planning.names import Names
from slmops.planning.overrides import can_meet, in_order
from slmops.planning.revision import build_revision_data, parse_revision, revision_of, source_hash
from tests.unit.planning.profile_kit import GIB, body_of, files, node, profile, variant

CONFIG = OperatorConfig(runtime_image="slmops/runtime:1", engine_images={"openvino": "slmops/openvino:1"})
SLOTS = {"runtime": {"slots": 1}}


def at(name: str, *sites: str, **fields: Any) -> dict[str, Any]:
    """An override for these sites that changes something."""
    return {"name": name} | ({"sites": list(sites)} if sites else {}) | (fields or SLOTS)


def host_of(labels: dict[str, str]) -> NodeView:
    return NodeView(name="n", labels=labels, ready=True, allocatable_memory_bytes=4 * GIB)


def spec_of(*variants: dict[str, Any], **changes: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(body_of(*variants, **changes))


def expanded(spec: SLMDeploymentSpec, *profiles: ProfileView, **known: Resolved) -> SLMDeploymentSpec:
    by_hash = {source_hash(v.source): known[v.name] for v in spec.variants if v.name in known}
    return expand_spec(spec, profiles=profiles, known=by_hash)


def revision(spec: SLMDeploymentSpec, *profiles: ProfileView) -> str:
    effective = expanded(spec, *profiles)
    return revision_of(effective, {v.name: "sha256:" + "0" * 64 for v in effective.variants})


def chosen(spec: SLMDeploymentSpec, host: NodeView, *profiles: ProfileView) -> str:
    effective = expanded(spec, *profiles)
    found = choose(build_candidates(effective, {}), rules_of(effective), host)
    return found.name if found is not None else ""


def only(spec: SLMDeploymentSpec, name: str, *profiles: ProfileView, **known: Resolved) -> Any:
    (found,) = [v for v in expanded(spec, *profiles, **known).variants if v.name == name]
    return found


def test_a_site_gets_variants_of_its_own_and_the_others_what_is_written() -> None:
    spec = spec_of(variant("int4"), variant("fp16"), overrides=[at("plant", "north", "south")])
    assert [v.name for v in expanded(spec).variants] == ["int4-plant", "fp16-plant", "int4", "fp16"]
    assert chosen(spec, node("a", site="north")) == "int4-plant"
    assert chosen(spec, node("b", site="east")) == chosen(spec, node("c")) == "int4"


def test_the_site_label_is_that_of_placement() -> None:
    placement = {"nodeSelector": {}, "siteLabel": "shop"}
    spec = spec_of(variant("int4"), placement=placement, overrides=[at("plant", "north")])
    assert chosen(spec, node("a", shop="north")) == "int4-plant"
    assert chosen(spec, node("a", site="north")) == "int4"


def test_all_that_is_given_must_match() -> None:
    entry = at("x", "north", profiles=["pi"], nodeSelector={"matchLabels": {"tier": "1"}}, **SLOTS)
    spec = spec_of(variant("int4"), overrides=[entry])
    full = {"site": "north", "device": "pi", "tier": "1"}
    assert chosen(spec, host_of(full), profile("pi")) == "int4-pi-x"
    for missing in full:
        labels = {key: value for key, value in full.items() if key != missing}
        assert not chosen(spec, host_of(labels), profile("pi")).endswith("-x"), missing


def test_with_profiles_there_are_pairs() -> None:
    spec = spec_of(variant("int4"), overrides=[at("a", "north"), at("b", profiles=["pi"], **SLOTS)])
    names = [v.name for v in expanded(spec, profile("pi"), profile("orin")).variants]
    # `b` is for every node of pi, so there are none of pi without an override.
    assert names == ["int4-orin-a", "int4-orin", "int4-pi-a", "int4-pi-b", "int4-a", "int4"]


def test_an_override_of_a_profile_keeps_the_budget_of_the_profile() -> None:
    spec = spec_of(variant("int4", "3Gi"), overrides=[at("a", "north")])
    small = profile("pi", budgets={"memory": "2Gi"})
    assert chosen(spec, node("n", device="pi", site="north"), small) == ""
    assert chosen(spec, node("n", site="north"), small) == "int4-a"


def test_settings_of_the_override_count_before_all_others() -> None:
    spec = spec_of(
        variant("int4", runtime={"threads": 3, "slots": 2}),
        runtime={"slots": 8, "maxQueue": 9},
        overrides=[at("a", "north", runtime={"threads": 1, "maxQueue": 5})],
    )
    found = only(spec, "int4-pi-a", profile("pi", runtime={"threads": 2, "contextLength": 1024}))
    assert found.runtime.to_body() == {"threads": 1, "slots": 2, "contextLength": 1024, "maxQueue": 5}
    assert only(spec, "int4-a").runtime.to_body() == {"threads": 1, "slots": 2, "maxQueue": 5}
    assert only(spec, "int4").runtime.to_body() == {"threads": 3, "slots": 2}


@pytest.mark.parametrize(
    ("own", "override", "requests", "limits"),
    [
        ({}, {"requests": {"memory": "1Gi"}}, {"cpu": "100m", "memory": "1Gi"}, {}),
        ({}, {"requests": {"cpu": "2"}}, {"cpu": "2"}, {}),
        (
            {"requests": {"memory": "2Gi"}, "limits": {"memory": "3Gi"}},
            {"limits": {"memory": "1Gi"}},
            {"memory": "1Gi"}, {"memory": "1Gi"},
        ),
        (
            {"limits": {"memory": "1Gi", "cpu": "1"}},
            {"requests": {"memory": "2Gi"}},
            {"cpu": "100m", "memory": "2Gi"}, {"memory": "2Gi", "cpu": "1"},
        ),
    ],
)  # fmt: skip
def test_amounts_of_the_override_count_and_no_request_is_above_its_limit(
    own: Any, override: Any, requests: Any, limits: Any
) -> None:
    spec = spec_of(variant("int4", resources=own), overrides=[at("a", "north", resources=override)])
    found = only(spec, "int4-a").resources
    assert (found.requests.to_body(), found.limits.to_body()) == (requests, limits)
    before = spec.variants[0].resources
    assert only(spec, "int4").resources == before


def test_an_engine_leaves_out_variants_for_another_one() -> None:
    spec = spec_of(
        variant("gguf"), variant("onnx"), variant("told", engine="openvino"),
        overrides=[at("l", "north", engine="llama.cpp"), at("auto", "south", engine="auto")],
    )  # fmt: skip
    known = {"gguf": files(("model.gguf", 5)), "onnx": files(("genai_config.json", 1), ("model.onnx", 5))}
    effective = expanded(spec, profile("pi", engine="onnxruntime", engineImage="pi:1"), **known)
    engines = {v.name: v.engine for v in effective.variants}
    assert [name for name in engines if name.endswith("-l")] == ["gguf-pi-l", "gguf-l"]
    assert engines["gguf-l"] == "llama.cpp" and engines["told-auto"] == "auto"
    images = {v.name: getattr(v, "image", None) for v in effective.variants}
    assert images["gguf-pi-l"] is None, "the profile's image has the profile's engine"
    assert images["onnx-pi"] == "pi:1"


def test_nothing_for_the_engine_is_said_with_the_override() -> None:
    spec = spec_of(variant("told", engine="openvino"), overrides=[at("l", "north", engine="llama.cpp")])
    table = assess_fit(spec, profiles=[], nodes=[node("n", site="north"), node("m")], resolved={})
    rows = {row.node: row for row in table.rows}
    assert (rows["n"].override, rows["m"].override) == ("l", "")
    assert "spec.overrides[l] counts for it; compare the override's engine" in rows["n"].problem
    assert rows["m"].problem == ""


def test_too_many_combinations_are_refused_with_the_cure() -> None:
    spec = spec_of(variant("a"), variant("b"), overrides=[at(f"o{i}", f"s{i}") for i in range(32)])
    with pytest.raises(
        ExpansionError, match=r"32 overrides, 0 DeviceProfiles .* 66 combinations, at most 64"
    ):
        expanded(spec)


def test_names_are_short_and_told_apart() -> None:
    spec = spec_of(
        variant("a"), variant("a-b"), variant("v" * 20),
        overrides=[at("b-c", "1"), at("c", "2"), at("b", "3"), at("o" * 20, "4")],
    )  # fmt: skip
    effective = expanded(spec, profile("b"), profile("p" * 40))
    names = [v.name for v in effective.variants]
    assert len(names) == len(set(names)) and max(map(len, names)) <= MAX_NAME_LENGTH


def test_a_revision_with_overrides_comes_back_whole_and_is_no_earlier_operators() -> None:
    spec = expanded(
        spec_of(
            variant("int4", resources={"requests": {"memory": "1Gi"}}),
            overrides=[at("a", "north", nodeSelector={"matchLabels": {"t": "1"}}, runtime={"maxQueue": 3})],
        ),
        profile("pi"),
    )
    resolved = {v.name: files(("model.onnx", 1000)) for v in spec.variants}
    templates = build.build_templates(
        Names("shop", "orders"), spec, config=CONFIG, revision="0123456789",
        digests={v.name: resolved[v.name].manifest.digest for v in spec.variants},
        references={v.name: "" for v in spec.variants},
    )  # fmt: skip
    data = json.loads(json.dumps(build_revision_data(spec, resolved=resolved, templates=templates)))
    assert data["schema"] == 2, "an operator that knows no overrides must not half understand it"
    found = parse_revision("0123456789", 1, data)
    assert list(found.profiles) == list(rules_of(spec))
    assert {(v.name, v.profile, v.override) for v in found.variants} == {
        ("int4-pi-a", "pi", "a"), ("int4-pi", "pi", ""), ("int4-a", "", "a"), ("int4", "", ""),
    }  # fmt: skip
    queue = {
        v.name: {e["name"]: e.get("value") for e in v.serve_template["spec"]["containers"][0]["env"]}[
            "SLM_MAX_QUEUE"
        ]
        for v in found.variants
    }
    assert queue == {"int4-pi-a": "3", "int4-a": "3", "int4-pi": "32", "int4": "32"}


def test_replicas_know_no_overrides() -> None:
    placement = {"mode": "Replicas", "nodeSelector": {}}
    spec = spec_of(variant("int4"), placement=placement, overrides=[at("a", "north")])
    assert expanded(spec) is spec


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ["north", "west"]},
        {"nodeSelector": {"matchLabels": {"t": "1"}}},
        {"profiles": ["pi"]},
        {"runtime": {"slots": 2}},
        {"resources": {"requests": {"memory": "1Gi"}}},
        {"engine": "auto"},
        {"name": "b"},
    ],
)
def test_what_changes_a_pod_or_its_nodes_is_a_new_revision(change: dict[str, Any]) -> None:
    entry = at("a", "north")
    spec = spec_of(variant("int4"), overrides=[entry])
    assert revision(spec_of(variant("int4"), overrides=[entry | change]), profile("pi")) != revision(
        spec, profile("pi")
    )


def test_what_is_for_nobody_is_no_new_revision() -> None:
    entry = at("a", nodeSelector={}, **SLOTS)
    spec = spec_of(variant("int4"), overrides=[entry])
    shadowed = spec_of(variant("int4"), overrides=[entry, at("b", "north"), at("c", "x", profiles=["gone"])])
    assert revision(shadowed) == revision(spec)
    absent = spec_of(variant("int4"), overrides=[at("c", profiles=["gone"], **SLOTS)])
    assert revision(absent) == revision(spec_of(variant("int4")))


LABELS = {"t": ["1", "2"], "u": ["1"]}
SITES = ["n", "s", "w"]
PROFILES = ["pi", "orin"]


@st.composite
def overrides(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=5))
    result = []
    for name in names:
        entry: dict[str, Any] = {"name": name, "runtime": {"slots": draw(st.integers(1, 3))}}
        given_ = draw(st.sets(st.sampled_from(["sites", "profiles", "nodeSelector"]), min_size=1))
        if "sites" in given_:
            entry["sites"] = draw(st.lists(st.sampled_from(SITES), unique=True, min_size=1))
        if "profiles" in given_:
            entry["profiles"] = draw(st.lists(st.sampled_from(PROFILES), unique=True, min_size=1))
        if "nodeSelector" in given_:
            chosen_ = draw(st.dictionaries(st.sampled_from(sorted(LABELS)), st.sampled_from(["1", "2"])))
            entry["nodeSelector"] = {"matchLabels": chosen_}
        result.append(entry)
    return result


def labels() -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "site": st.sampled_from([*SITES, "elsewhere"]),
            "device": st.sampled_from([*PROFILES, "x86"]),
            "t": st.sampled_from(["1", "2", "3"]),
            "u": st.sampled_from(["1", "2"]),
        },
    )


def expected(entries: list[dict[str, Any]], host: dict[str, str], known: list[str]) -> str:
    """What the documentation says, word by word: the first that matches counts."""
    its_profile = host.get("device") if host.get("device") in known else None
    for entry in entries:
        wanted = entry.get("nodeSelector", {}).get("matchLabels", {})
        if (
            ("sites" not in entry or host.get("site") in entry["sites"])
            and ("profiles" not in entry or its_profile in entry["profiles"])
            and all(host.get(key) == value for key, value in wanted.items())
        ):
            return str(entry["name"])
    return ""


@given(overrides(), labels(), st.lists(st.sampled_from(PROFILES), unique=True))
@settings(max_examples=100, deadline=None)
def test_exactly_one_variant_for_each_node_that_of_the_first_match(
    entries: list[dict[str, Any]], host: dict[str, str], known: list[str]
) -> None:
    spec = expanded(spec_of(variant("int4"), overrides=entries), *map(profile, known))
    rule = find_rule(rules_of(spec), host)
    meant = selected_for(build_candidates(spec, {}), rule, host)
    assert len(meant) == 1
    assert meant[0].override == expected(entries, host, known)
    assert meant[0].profile == (host["device"] if host.get("device") in known else "")
    assert rule is None or rule.is_of(host)


@given(overrides(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_matters_only_among_overrides_that_can_meet(entries: list[dict[str, Any]], random: Any) -> None:
    ordered = [Override.model_validate(entry) for entry in entries]
    other = list(ordered)
    for _ in range(20):
        if len(other) > 1:
            index = random.randrange(len(other) - 1)
            if not can_meet(other[index], other[index + 1]):
                other[index], other[index + 1] = other[index + 1], other[index]
    assert in_order(other) == in_order(ordered)
    written = [[o.to_body() for o in order] for order in (ordered, other)]
    first, second = (spec_of(variant("int4"), overrides=body) for body in written)
    assert revision(first, profile("pi")) == revision(second, profile("pi"))


@given(overrides(), labels(), labels())
@settings(max_examples=60, deadline=None)
def test_two_that_a_node_matches_can_meet(
    entries: list[dict[str, Any]], host: dict[str, str], _other: dict[str, str]
) -> None:
    matching = [entry for entry in entries if expected([entry], host, PROFILES)]
    parsed = [Override.model_validate(entry) for entry in matching]
    assert all(can_meet(one, two) and can_meet(two, one) for one in parsed for two in parsed)


@given(st.permutations(["n", "s", "w"]), st.permutations(["pi", "orin"]))
@settings(max_examples=12, deadline=None)
def test_sites_and_profiles_are_sets(sites: list[str], profiles: list[str]) -> None:
    found = {
        revision(spec_of(variant("int4"), overrides=[at("a", *s, profiles=p, **SLOTS)]), profile("pi"))
        for s, p in ((sites, profiles), (SITES, PROFILES))
    }
    assert len(found) == 1


@given(st.lists(st.sampled_from(PROFILES), unique=True))
def test_without_overrides_everything_is_as_before(known: list[str]) -> None:
    spec, empty = spec_of(variant("int4")), spec_of(variant("int4"), overrides=[])
    profiles = [profile(name) for name in known]
    bodies = [rule.to_body() for rule in rules_of(expanded(spec, *profiles))]
    assert all("override" not in body for body in bodies)
    assert all("override" not in v.to_body() for v in expanded(spec, *profiles).variants)
    assert revision(spec, *profiles) == revision(empty, *profiles)
    assert all(override_of(v) == "" for v in expanded(spec, *profiles).variants)
    assert {profile_of(v) for v in expanded(spec, *profiles).variants} == {"", *known}


def test_more_memory_is_needed_where_more_is_asked_of_the_server() -> None:
    cache = {"weights": "1Gi", "overhead": "100Mi", "cachePerToken": "1Mi"}
    spec = spec_of(
        variant("int4", memory=cache, engine="llama.cpp"),
        runtime={"slots": 1, "contextLength": 512},
        overrides=[at("large", "north", runtime={"slots": 8})],
    )
    hosts = [node("n", memory=2 * GIB, site="north"), node("m", memory=2 * GIB)]
    rows = {r.node: r for r in assess_fit(spec, profiles=[], nodes=hosts, resolved={}).rows}
    assert rows["n"].chosen is None and "needs 5220 MiB" in rows["n"].problem
    assert rows["m"].chosen is not None
