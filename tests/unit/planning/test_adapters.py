# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of an override: part of its variants' files, and told apart from the model's own."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec
from slmops.api.overrides import Adapter
from slmops.model.config import OperatorConfig
from slmops.model.observed import OwnedKind, Resolved
from slmops.model.plan import ApplyObject
from slmops.planning.adapters import (
    adapters_of,
    adapters_to_body,
    find_problem,
    join_adapters,
    with_adapters,
)
from slmops.planning.expand import expand_spec
from slmops.planning.fit import assess_fit
from slmops.planning.history import parse_stored
from slmops.planning.resolution import known_sources, resolve
from slmops.planning.revision import build_revision_data, parse_revision, resolution_key
from slmops.planning.validate import validate
from slmwire.manifest import Manifest, ManifestError, ManifestFile, parse_manifest
from tests.unit.planning import fleet_sim
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.profile_kit import GIB, ProfileSim, body_of, files, node, variant

CONFIG = OperatorConfig(runtime_image="slmops/runtime:1")
HOST = "https://models.example/adapters"


def adapter(name: str = "wording", *, ending: str = "gguf", sha: str = "a", size: int = 7) -> dict[str, Any]:
    return {"name": name, "url": f"{HOST}/{name}.{ending}", "sha256": sha * 64, "size": size}


def plant(*adapters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "plant", "sites": ["north"], "adapters": list(adapters)} | fields


def spec_of(*variants: dict[str, Any], **changes: Any) -> SLMDeploymentSpec:
    return SLMDeploymentSpec.model_validate(body_of(*(variants or (variant("int4"),)), **changes))


def parsed(*adapters: dict[str, Any]) -> list[Adapter]:
    return [Adapter.model_validate(entry) for entry in adapters]


def paths(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def test_an_adapter_is_one_more_file_of_the_overrides_variants() -> None:
    spec = expand_spec(spec_of(overrides=[plant(adapter())]), known={})
    model = files(("model.gguf", 5))
    source = spec.variants[0].source
    found = resolve(spec, outcomes={resolution_key(source, None): model}, stored=())
    assert paths(found.resolved["int4-plant"].manifest) == ["adapters/wording.gguf", "model.gguf"]
    assert found.resolved["int4"] == model
    sizes = {entry.name: entry.size_bytes for entry in found.variants}
    assert sizes == {"int4-plant": 12, "int4": 5}
    assert len({entry.digest for entry in found.variants}) == 2
    assert (
        found.revision
        != resolve(
            expand_spec(spec_of(overrides=[plant(adapter(sha="b"))]), known={}),
            outcomes={resolution_key(source, None): model},
            stored=(),
        ).revision
    ), "other bytes are another revision"


def test_an_adapter_replaces_one_of_the_models_own() -> None:
    model = files(("adapters/wording.gguf", 3), ("adapters/other.gguf", 3), ("model.gguf", 5))
    found = with_adapters(model, parsed(adapter()))
    by_path = {file.path: file for file in found.manifest.files}
    assert by_path["adapters/wording.gguf"].sha256 == "a" * 64
    assert set(by_path) == set(paths(model.manifest)) and found.base == model.manifest


def test_without_adapters_nothing_is_changed() -> None:
    model = files(("model.gguf", 5))
    assert with_adapters(model, ()) is model
    assert adapters_to_body(model) == [] and join_adapters(model.manifest, ()) == model.manifest


def test_what_cannot_stand_beside_the_model_is_said() -> None:
    with pytest.raises(ManifestError, match="has a file adapters"):
        with_adapters(files(("adapters", 5)), parsed(adapter()))
    with pytest.raises(ManifestError, match="501 files; at most 500"):
        with_adapters(files(*((f"f{i}", 1) for i in range(500))), parsed(adapter()))
    for name, ending, other in (
        ("model.gguf", "onnx_adapter", "llama.cpp"),
        ("genai_config.json", "gguf", "onnxruntime"),
    ):
        with pytest.raises(
            ManifestError, match=f"the model's files are for {other}; give the override engine"
        ):
            with_adapters(files((name, 5)), parsed(adapter(ending=ending)))
    spec = expand_spec(spec_of(overrides=[plant(adapter())]), known={})
    found = resolve(
        spec,
        outcomes={resolution_key(spec.variants[0].source, None): files(("adapters", 5))},
        stored=(),
    )
    assert found.revision == "" and "rename the file" in found.failures[0][1].message


def test_a_refusal_says_no_time_at_which_it_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_sim, "manifest_of", lambda _url: files(("adapters", 5)).manifest)
    sim = ProfileSim(body_of(variant("int4"), overrides=[plant(adapter())]))
    sim.add_node("n0", labels={"site": "north"})
    sim.run(60)
    resolved = next(c.message for c in sim.status.conditions if c.type == "ModelResolved")
    assert "rename the file" in resolved and "tried again" not in resolved
    assert sim.looks[-1].plan.requeue_after_seconds is None


def test_many_overrides_with_adapters_fit_one_object() -> None:
    """The model's own files, hundreds of them, are stored once."""
    overrides = [plant(adapter(sha=f"{i % 16:x}"), name=f"o{i}", sites=[f"s{i}"]) for i in range(32)]
    spec = expand_spec(spec_of(overrides=overrides), known={})
    rows = [
        ManifestFile(path=f"part-{i:03}.bin", size=1, sha256=f"{i:064x}", url=f"{HOST}/{'x' * 80}/{i:03}")
        for i in range(200)
    ]
    model = Resolved(manifest=Manifest(files=tuple(rows)), reference="")
    resolved = {v.name: with_adapters(model, adapters_of(v)) for v in spec.variants}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}
    templates = {v.name: (template, template) for v in spec.variants}
    data = build_revision_data(spec, resolved=resolved, templates=templates)
    assert len(json.dumps(data)) < 150_000
    parsed_again = parse_revision("0123456789", 1, json.loads(json.dumps(data)))
    assert {v.name: v.manifest for v in parsed_again.variants} == {n: f.manifest for n, f in resolved.items()}
    assert {v.base for v in parsed_again.variants} == {model.manifest, None}


names = st.sampled_from(["a", "b", "c"])
endings = st.sampled_from(["gguf", "onnx_adapter"])


@st.composite
def models(draw: st.DrawFn) -> Resolved:
    chosen = draw(st.sets(st.tuples(names, endings)))
    own = [f"adapters/{name}.{ending}" for name, ending in chosen] + ["model.onnx"]
    rows = [ManifestFile(path=p, size=draw(st.integers(0, 9)), sha256="c" * 64, url="u") for p in sorted(own)]
    return Resolved(manifest=Manifest(files=tuple(rows)), reference="")


@given(models(), st.dictionaries(names, endings))
def test_the_models_own_files_are_told_again(model: Resolved, chosen: dict[str, str]) -> None:
    found = with_adapters(model, parsed(*(adapter(name, ending=ending) for name, ending in chosen.items())))
    assert parse_manifest(found.manifest.to_json()) == found.manifest, "as nodes read it"
    kept = json.loads(json.dumps(adapters_to_body(found)))
    assert join_adapters(model.manifest, kept) == found.manifest
    assert not chosen or found.base == model.manifest
    for name, ending in chosen.items():
        assert f"adapters/{name}.{ending}" in paths(found.manifest)


SECRET = {"secretRef": {"name": "token"}}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"http": {"url": "https://elsewhere.example/m.json"}}, ""),
        ({"http": {"url": "https://models.example/m.json"} | SECRET}, ""),
        ({"http": {"url": "https://elsewhere.example/m.json"} | SECRET}, "credential"),
        ({"http": {"url": "http://models.example/m.json"} | SECRET}, "credential"),
        ({"http": {"url": "https://models.example.evil/m.json"} | SECRET}, "credential"),
        ({"hf": {"repo": "a/b"} | SECRET}, "credential"),
        ({"hf": {"repo": "a/b", "endpoint": "https://models.example"} | SECRET}, ""),
        ({"s3": {"bucket": "models", "prefix": "a/"} | SECRET}, "credential"),
        ({"s3": {"bucket": "models", "prefix": "a/"}}, ""),
        ({"oci": {"image": "registry.example/m:1", "pullSecretRef": {"name": "x"}}}, "credential"),
        ({"oci": {"image": "registry.example/m:1"}}, ""),
        ({"oci": {"image": "registry.example/m:1", "delivery": "ImageVolume"}}, "ImageVolume"),
    ],
)
def test_no_server_is_shown_the_credential_of_another(source: dict[str, Any], problem: str) -> None:
    spec = expand_spec(spec_of(variant("int4", source=source), overrides=[plant(adapter())]), known={})
    first, plain = spec.variants
    assert find_problem(plain) == ""
    assert problem in find_problem(first) and bool(problem) is bool(find_problem(first))
    deployment = replace(ProfileSim(body_of(variant("int4"))).observed().deployment, spec=spec)
    finding = validate(deployment, CONFIG)
    assert (finding is not None) is bool(problem)
    assert finding is None or finding.message.startswith("spec.overrides[plant].adapters: ")


@pytest.mark.parametrize(
    "url", ["ftp://h/a.gguf", "https://h/a.bin", "https://u:p@h/a.gguf", "https://h/a b.gguf"]
)
def test_urls_that_name_no_adapter_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Adapter.model_validate(adapter() | {"url": url})


def test_its_size_is_counted() -> None:
    spec = spec_of(
        {"name": "int4", "source": variant("int4")["source"]},
        overrides=[plant(adapter(size=GIB))],
    )
    known = {resolution_key(spec.variants[0].source, None): files(("model.gguf", GIB))}
    hosts = [node("n", site="north"), node("s", site="south")]
    rows = {r.node: r.chosen for r in assess_fit(spec, profiles=[], nodes=hosts, resolved=known).rows}
    north, south = rows["n"], rows["s"]
    assert north is not None and south is not None
    assert north.size_bytes - south.size_bytes == north.memory_bytes - south.memory_bytes == GIB


def test_in_a_fleet_the_site_fetches_it_in_waves_and_going_back_needs_no_network() -> None:
    sim = ProfileSim(body_of(variant("int4", "800Mi")))
    watch(sim)
    for site in ("north", "south"):
        for index in range(3):
            sim.add_node(f"{site}{index}", labels={"site": site}, memory_bytes=4 * GIB)
    sim.settle()
    first = sim.status.stable_revision
    sim.edit(overrides=[plant(adapter())])
    sim.settle()
    assert sim.variants() == {
        **{f"north{i}": "int4-plant" for i in range(3)}, **{f"south{i}": "int4" for i in range(3)}
    }  # fmt: skip
    written = [
        action
        for look in sim.looks
        for action in look.plan.actions
        if isinstance(action, ApplyObject) and action.kind is OwnedKind.CONFIG_MAP
    ]
    manifests = {a.name: str(a.body) for a in written if sim.status.stable_revision in a.name}
    assert {("adapters/wording.gguf" in text) for text in manifests.values()} == {True, False}
    asked = len([look for look in sim.looks if look.plan.resolve])
    sim.edit(overrides=None)
    sim.settle()
    assert sim.status.stable_revision == first and set(sim.variants().values()) == {"int4"}
    sim.edit(overrides=[plant(adapter(), runtime={"slots": 1})])
    sim.settle()
    assert len([look for look in sim.looks if look.plan.resolve]) == asked, "the model's files are known"


def test_what_a_revision_has_of_the_model_is_without_adapters() -> None:
    sim = ProfileSim(body_of(variant("int4", "800Mi"), overrides=[plant(adapter())]))
    sim.add_node("n", labels={"site": "north"}, memory_bytes=4 * GIB)
    sim.settle()
    stored = parse_stored(sim.observed())
    assert any(entry.base for revision in stored.values() for entry in revision.variants)
    for found in known_sources(stored.values()).values():
        assert not any(path.startswith("adapters/") for path in paths(found.manifest))
