# SPDX-License-Identifier: Apache-2.0
"""What a variant needs, which one each node takes, and what is said where none fits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.model.geometry import Geometry, parse_geometry
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.model.offers import Measured, OfferedVariant, OfferedVersion
from slmops.planning.expand import expand_spec
from slmops.planning.fit import FitTable, assess_fit
from slmops.planning.needs import (
    ASSUMED_CONTEXT,
    OVERHEAD_BYTES,
    Need,
    assess_need,
    assess_needs,
    engine_of_files,
    with_requests,
)
from slmops.planning.revision import source_hash
from tests.unit.planning.profile_kit import GIB, MIB, body_of, files, node, profile, variant

QWEN = Geometry(layers=24, kv_heads=2, head_size=64, context_length=32768)
"""24,576 bytes of float32 per token."""


def spec_of(*variants: dict[str, Any], **changes: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(body_of(*variants, **changes))


def plain(name: str = "int4", **fields: Any) -> dict[str, Any]:
    return {"name": name, "source": {"http": {"url": f"http://models/{name}.json"}}} | fields


def need_of(
    found: Resolved | None, *, deployment: dict[str, Any] | None = None, **fields: Any
) -> Need | None:
    spec = spec_of(plain(**fields), runtime=deployment or {})
    return assess_need(spec, spec.variants[0], found)


def test_a_need_is_weights_and_cache_and_the_engine() -> None:
    found = files(("genai_config.json", 2000), ("model.onnx", 1 * MIB), ("model.onnx.data", 300 * MIB),
                  ("tokenizer.json", 9 * MIB), geometry=QWEN)  # fmt: skip
    need = need_of(found, deployment={"slots": 2, "contextLength": 4096})
    assert need is not None
    assert need.weights_bytes == 301 * MIB, "files that are not loaded as weights do not count"
    assert need.cache_bytes == 24_576 * 4096 * 3
    assert need.overhead_bytes == OVERHEAD_BYTES["onnxruntime"]
    assert need.total_bytes == need.weights_bytes + need.cache_bytes + need.overhead_bytes
    assert need.describe() == "749 MiB (weights 301, cache 288, engine 160)"


@pytest.mark.parametrize(
    ("runtime", "fields", "tokens"),
    [
        ({}, {}, ASSUMED_CONTEXT * 4),
        ({"contextLength": 100_000}, {}, 32768 * 4),
        ({"contextLength": 1000, "slots": 1}, {}, 1000),
        ({"contextLength": 1000}, {"runtime": {"slots": 3, "contextLength": 500}}, 1500),
    ],
)
def test_the_cache_goes_by_slots_and_context(
    runtime: dict[str, Any], fields: dict[str, Any], tokens: int
) -> None:
    need = need_of(files(("model.gguf", 10), geometry=QWEN), deployment=runtime, **fields)
    assert need is not None and need.cache_bytes == 24_576 // 2 * tokens, "llama.cpp keeps float16"


def test_hints_count_before_what_is_computed() -> None:
    memory = {"weights": "1Gi", "cachePerToken": "1Ki", "overhead": "7Mi"}
    need = need_of(files(("model.onnx", 5), geometry=QWEN), memory=memory, deployment={"slots": 1})
    assert need == Need(weights_bytes=GIB, cache_bytes=ASSUMED_CONTEXT << 10, overhead_bytes=7 * MIB)


def test_a_request_that_is_given_counts_alone() -> None:
    need = need_of(files(("model.onnx", 5 * GIB)), resources={"requests": {"memory": "300Mi"}})
    assert need is not None and need.total_bytes == 300 * MIB
    assert need.describe() == "300 MiB (the request in spec)"


def test_while_the_cache_is_unknown_no_less_is_asked_for_than_before() -> None:
    small, large = need_of(files(("model.onnx", 10))), need_of(files(("model.onnx", GIB)))
    assert small is not None and small.total_bytes == 256 * MIB
    assert large is not None and large.total_bytes == GIB + OVERHEAD_BYTES["onnxruntime"]
    assert need_of(None) is None
    spec = spec_of(plain())
    assert with_requests(spec, {}).variants[0].resources.requests.memory == "256Mi"


def test_a_computed_request_stays_below_the_limit() -> None:
    spec = spec_of(plain(resources={"limits": {"memory": "300Mi"}}))
    needs = assess_needs(spec, {"int4": files(("model.onnx", GIB))})
    assert with_requests(spec, needs).variants[0].resources.requests.memory == "300Mi"


def test_what_an_slmmodel_has_measured_counts() -> None:
    offered = OfferedVariant(
        name="int4",
        source=spec_of(plain()).variants[0].source,
        size_bytes=300 * MIB,
        cache_bytes_per_token=1024,
        measured={"pi": Measured(memory_bytes=700 * MIB)},
    )
    spec = expand_spec(
        spec_of(model={"name": "m", "from": {"name": "m"}}, runtime={"slots": 1, "contextLength": 1024}),
        profiles=[profile("pi")],
        known={},
        offered=OfferedVersion(version="1", accepted=True, variants=(offered,)),
    )
    needs = assess_needs(spec, {})
    assert needs["int4-pi"].total_bytes == 701 * MIB
    assert needs["int4"].total_bytes == (300 + 160 + 1) * MIB, "not measured on nodes of no profile"


@pytest.mark.parametrize(
    ("names", "engine"),
    [
        (["model.gguf", "config.json"], "llama.cpp"),
        (["genai_config.json", "model.onnx"], "onnxruntime"),
        (["openvino_model.xml", "openvino_model.bin", "config.json"], "openvino"),
        (["a/model.tflite"], "litert"),
        (["model.litertlm"], "litert"),
        (["model.pte"], "executorch"),
        (["model.onnx", "config.json"], "encoder"),
        (["model.onnx"], ""),
        (["model.safetensors"], ""),
    ],
)
def test_files_tell_the_engine(names: list[str], engine: str) -> None:
    assert engine_of_files(files(*((name, 1) for name in names)).manifest) == engine


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"model": {"context_length": 32768, "decoder": {"num_hidden_layers": 24, '
            '"num_key_value_heads": 2, "head_size": 64}}}',
            QWEN,
        ),
        (
            '{"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, '
            '"hidden_size": 896, "max_position_embeddings": 32768}',
            QWEN,
        ),
        ('{"num_hidden_layers": 24}', None),
        ('{"num_hidden_layers": 24, "num_attention_heads": true, "hidden_size": 1}', None),
        ('{"num_hidden_layers": 1e9, "num_attention_heads": 1, "hidden_size": 64}', None),
        ('{"model": {"context_length": -1, "decoder": {}}}', None),
        ("[1]", None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
def test_the_configuration_of_a_model_tells_its_geometry(text: str, expected: Geometry | None) -> None:
    assert parse_geometry(text) == expected


def fit(spec: SLMDeploymentSpec, *nodes: NodeView, profiles: tuple[ProfileView, ...] = ()) -> FitTable:
    known = {source_hash(v.source): files(("model.onnx", 1000)) for v in spec.variants}
    return assess_fit(spec, profiles=profiles, nodes=nodes, resolved=known)


def test_each_node_takes_the_first_that_fits_its_budget() -> None:
    spec = spec_of(variant("fp16", "3Gi"), variant("int8", "1500Mi"), variant("int4", "800Mi"))
    pi = profile("pi", budgets={"memory": "50%"})
    table = fit(
        spec, node("c"), node("b", device="pi"), node("a", device="pi", memory=2 * GIB), profiles=(pi,)
    )
    assert [(row.node, row.profile, row.chosen and row.chosen.name) for row in table.rows] == [
        ("a", "pi", "int4-pi"), ("b", "pi", "int8-pi"), ("c", "", "fp16"),
    ]  # fmt: skip
    assert [judged.verdict for judged in table.rows[1].candidates] == ["Memory", "Fits", "Fits"]
    assert (table.rows[1].capacity_bytes, table.rows[1].allocatable_bytes) == (2 * GIB, 4 * GIB)


def test_where_nothing_fits_the_numbers_are_said() -> None:
    spec = spec_of(variant("fp16", "3Gi"), variant("int4", "800Mi"))
    pi = profile("pi", budgets={"memory": "25%", "disk": "0"})
    tight, small = fit(spec, node("a", device="pi"), node("b", memory=500 * MIB), profiles=(pi,)).rows
    assert small.problem == (
        "the smallest variant needs 900 MiB of memory, the node can give 500 MiB (int4 900 MiB (weights 800, "
        "cache 0, engine 100), fp16 3172 MiB (weights 3072, cache 0, engine 100)); add a smaller variant"
    )
    assert "files of 1 MiB are above the disk budget of 0 MiB of DeviceProfile pi" in tight.problem
    spec = spec_of(variant("fp16", "3Gi"))
    (row,) = fit(spec, node("a", device="pi"), profiles=(profile("pi", budgets={"memory": "25%"}),)).rows
    assert "can give 1024 MiB (budget 25% of DeviceProfile pi, allocatable 4096 MiB)" in row.problem


def test_a_node_of_a_profile_without_variants_is_told_so() -> None:
    spec = spec_of(variant("gguf", engine="llama.cpp"))
    (row,) = fit(spec, node("a", device="pi"), profiles=(profile("pi", engine="openvino"),)).rows
    assert row.chosen is None and "DeviceProfile pi: compare spec.engine of the profile" in row.problem


def test_what_is_not_known_is_not_refused() -> None:
    spec = spec_of(plain())
    (row,) = assess_fit(spec, profiles=(), nodes=[node("a", memory=1)], resolved={}).rows
    assert row.chosen is not None and [judged.verdict for judged in row.candidates] == ["Unknown"]


# Invariants

sizes = st.integers(min_value=1, max_value=6000).map(lambda mib: f"{mib}Mi")
variants = st.lists(sizes, min_size=1, max_size=5).map(
    lambda found: [variant(f"v{index}", size) for index, size in enumerate(found)]
)
budgets = st.fixed_dictionaries(
    {}, optional={"memory": st.one_of(sizes, st.integers(1, 100).map(lambda p: f"{p}%"))}
)
preferences = st.one_of(
    st.fixed_dictionaries({"strategy": st.sampled_from(["BestQuality", "Smallest", "Fastest"])}),
    st.fixed_dictionaries({"prefer": st.lists(st.sampled_from(["v0", "v1", "no", "v*", "v?"]), max_size=3)}),
)
memories = st.integers(min_value=1, max_value=8000).map(lambda mib: mib * MIB)
fleets = st.lists(st.tuples(memories, st.sampled_from(["pi", "orin", "other"])), min_size=1, max_size=6)


@st.composite
def profiles(draw: st.DrawFn) -> tuple[ProfileView, ...]:
    return tuple(
        profile(
            name,
            budgets=draw(budgets),
            variants=draw(preferences),
            priority=draw(st.integers(-2, 2)),
            nodeSelector=draw(st.sampled_from([{}, {"matchLabels": {"device": name}}])),
        )
        for name in draw(st.lists(st.sampled_from(["pi", "orin"]), unique=True))
    )


def fleet_of(found: list[tuple[int, str]]) -> list[NodeView]:
    return [node(f"n{i}", memory=memory, device=device) for i, (memory, device) in enumerate(found)]


@given(variants, profiles(), fleets)
def test_what_is_chosen_fits_the_budget_and_what_comes_before_does_not(
    forms: list[dict[str, Any]], known: tuple[ProfileView, ...], fleet: list[tuple[int, str]]
) -> None:
    for row in fit(spec_of(*forms), *fleet_of(fleet), profiles=known).rows:
        verdicts = [judged.verdict for judged in row.candidates]
        assert row.capacity_bytes <= row.allocatable_bytes
        if row.chosen is None:
            assert "Fits" not in verdicts and row.problem
            continue
        assert row.chosen.memory_bytes <= row.capacity_bytes and not row.problem
        place = [judged.candidate for judged in row.candidates].index(row.chosen)
        assert "Fits" not in verdicts[:place] and verdicts[place] == "Fits"
        assert row.chosen.profile == row.profile


@given(variants, profiles(), memories, memories, st.sampled_from(["pi", "orin", "other"]))
def test_more_memory_never_gives_a_worse_variant(
    forms: list[dict[str, Any]], known: tuple[ProfileView, ...], first: int, second: int, device: str
) -> None:
    def place(memory: int) -> int:
        (row,) = fit(spec_of(*forms), node("n", memory=memory, device=device), profiles=known).rows
        names = [judged.candidate for judged in row.candidates]
        return names.index(row.chosen) if row.chosen is not None else len(names)

    less, more = sorted((first, second))
    assert place(more) <= place(less)


@given(variants, profiles(), fleets, budgets, preferences, st.integers(-3, 3))
def test_a_profile_that_no_node_is_of_changes_no_choice(
    forms: list[dict[str, Any]],
    known: tuple[ProfileView, ...],
    fleet: list[tuple[int, str]],
    budget: dict[str, Any],
    preference: dict[str, Any],
    priority: int,
) -> None:
    stranger = profile("nobody", budgets=budget, variants=preference, priority=priority)
    spec, nodes = spec_of(*forms), fleet_of(fleet)
    assert fit(spec, *nodes, profiles=(*known, stranger)) == fit(spec, *nodes, profiles=known)
