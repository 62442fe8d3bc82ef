# SPDX-License-Identifier: Apache-2.0
"""`fit`: the table with and without a cluster, and where sizes come from."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmcli.errors import UsageError
from slmcli.fitting import fetch_url, find_sizes
from slmops.api import SLMDeploymentSpec
from slmops.api.slmmodel_status import SLMModelStatus
from slmops.planning.revision import source_hash
from tests.unit.planning.model_sim import GOOD, ModelSim, spec_body
from tests.unit.slmcli.cli_double import Ran, ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    Body,
    build_body,
    build_node,
    build_revision,
    build_spec,
    build_status,
)
from tests.unit.slmcli.cli_server import ScriptedApi, serve

MIB = 1 << 20
GIB = 1 << 30


def source(size: int, name: str = "model.onnx") -> Body:
    """A source whose size the spec tells."""
    return {
        "http": {
            "url": "https://models.example/m/",
            "files": [{"path": name, "sha256": "0" * 64, "size": size}],
        }
    }


def spec_with(*variants: Body) -> Body:
    spec = build_spec()
    return spec | {"variants": list(variants)}


BIG = {"name": "fp16", "source": source(3 * GIB)}
SMALL = {"name": "int4", "source": source(500 * MIB), "memory": {"cachePerToken": "1Ki"}}
PROFILE = {
    "kind": "DeviceProfile",
    "metadata": {"name": "pi"},
    "spec": {"nodeSelector": {"matchLabels": {"device": "pi"}}, "budgets": {"memory": "50%", "disk": "1Gi"}},
}
NODES: list[Body] = [
    {"name": "server", "labels": {"edge": "true"}, "memory": "8Gi"},
    {"name": "board", "labels": {"edge": "true", "device": "pi"}, "memory": "2Gi"},
    {"name": "tiny", "labels": {"edge": "true"}, "memory": "256Mi"},
    {"name": "elsewhere", "labels": {"edge": "false"}, "memory": "8Gi"},
]


def written(folder: Path, *bodies: Any, name: str = "deployment.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump_all(bodies))
    return str(path)


def offline(
    folder: Path, capsys: pytest.CaptureFixture[str], *argv: str, spec: Body | None = None, nodes: Any = None
) -> Ran:
    """Without a cluster: one that is asked would fail."""
    file = written(folder, build_body(spec=spec or spec_with(BIG, SMALL)))
    fleet = written(folder, *(nodes if nodes is not None else [*NODES, PROFILE]), name="fleet.yaml")
    cluster = ScriptedCluster(broken=UsageError("asked"))
    return run_cli(cluster, "fit", "-f", file, "--nodes", fleet, *argv, capsys=capsys)


def test_the_table_shows_what_each_node_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = offline(tmp_path, capsys)
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0].split() == [
        "NODE", "PROFILE", "VARIANT", "NEEDS", "WEIGHTS", "CACHE", "ENGINE", "NODE", "GIVES", "FILES", "DISK",
        "BUDGET",
    ]  # fmt: skip
    assert lines[1].split() == [
        "board", "pi", "int4-pi", "670MiB", "500MiB", "10MiB", "160MiB", "1GiB", "of", "2GiB", "500MiB",
        "1GiB",
    ]  # fmt: skip
    assert lines[2].split() == ["server", "-", "fp16", "3.2GiB", "3GiB", "?", "160MiB", "8GiB", "3GiB", "-"]
    assert "none fits" in lines[3] and "needs 670 MiB of memory, the node can give 256 MiB" in lines[4]
    assert "2 of 3 node(s) can run it" in lines[-1] and "elsewhere" not in ran.out


def test_the_document_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = offline(tmp_path, capsys, "-o", "json")
    document = json.loads(ran.out)
    assert (document["kind"], document["name"], document["fitsAnywhere"]) == ("FitTable", "orders", True)
    board = document["items"][0]
    assert (board["node"], board["profile"], board["variant"]) == ("board", "pi", "int4-pi")
    assert (board["allocatableBytes"], board["capacityBytes"]) == (2 * GIB, GIB)
    big, small = board["candidates"]
    assert (big["variant"], big["verdict"], big["sizeBytes"]) == ("fp16-pi", "Memory", 3 * GIB)
    assert small["need"] == {
        "totalBytes": 670 * MIB, "weightsBytes": 500 * MIB, "cacheBytes": 10 * MIB,
        "overheadBytes": 160 * MIB, "requestBytes": None,
    }  # fmt: skip
    assert document["items"][2]["problem"].startswith("the smallest variant needs")


OVERRIDES = [
    {"name": "plant", "sites": ["north"], "runtime": {"slots": 1}},
    {"name": "typo", "sites": ["nroth"], "runtime": {"slots": 1}},
]


def test_the_override_that_counts_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    north = {"edge": "true", "device": "pi", "site": "north"}
    nodes = [*NODES, {"name": "north", "labels": north, "memory": "2Gi"}, PROFILE]
    spec = spec_with(BIG, SMALL) | {"overrides": OVERRIDES}
    ran = offline(tmp_path, capsys, spec=spec, nodes=nodes)
    lines = ran.out.splitlines()
    assert lines[0].split()[:4] == ["NODE", "PROFILE", "OVERRIDE", "VARIANT"]
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["north"][1:4] == ["pi", "plant", "int4-pi-plant"]
    assert rows["board"][1:4] == ["pi", "-", "int4-pi"]
    assert "typo: for none of these nodes" in ran.err and "the label site," in ran.err
    document = json.loads(offline(tmp_path, capsys, "-o", "json", spec=spec, nodes=nodes).out)
    assert {i["node"]: i["override"] for i in document["items"]} == {
        "board": None, "north": "plant", "server": None, "tiny": None,
    }  # fmt: skip
    assert document["idleOverrides"] == ["typo"]


def test_when_nothing_fits_anywhere_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = offline(tmp_path, capsys, spec=spec_with({"name": "fp16", "source": source(90 * GIB)}))
    assert ran.code == 1 and "0 of 3 node(s) can run it" in ran.out
    assert "fp16-pi: 92320 MiB (weights 92160, cache unknown, engine 160): too little memory" in ran.out


def cluster_with(*profiles: Body) -> ScriptedCluster:
    cluster = ScriptedCluster(blueprints=list(profiles))
    for name, memory in (("a", "1Gi"), ("b", "8Gi")):
        node = build_node(name)
        node["status"]["allocatable"] = {"memory": memory}
        cluster.fleet.append(node)
    return cluster


def test_the_clusters_nodes_and_profiles_are_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = PROFILE | {"spec": {"budgets": {"memory": "700Mi"}}}
    file = written(tmp_path, build_body(spec=spec_with(BIG, SMALL)))
    ran = run_cli(cluster_with(every), "fit", "-f", file, "-o", "json", capsys=capsys)
    assert [(i["node"], i["variant"]) for i in json.loads(ran.out)["items"]] == [
        ("a", "int4-pi"),
        ("b", "int4-pi"),
    ]
    what_if = written(
        tmp_path, build_body(spec=spec_with(BIG, SMALL)), every | {"spec": {}}, name="what-if.yaml"
    )
    ran = run_cli(cluster_with(every), "fit", "-f", what_if, "-o", "json", capsys=capsys)
    assert [i["variant"] for i in json.loads(ran.out)["items"]] == ["int4-pi", "fp16-pi"]


def test_a_cluster_without_the_kind_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = cluster_with()
    cluster.blueprints = None
    file = written(tmp_path, build_body(spec=spec_with(SMALL)))
    ran = run_cli(cluster, "fit", "-f", file, capsys=capsys)
    assert ran.code == 0 and "knows no DeviceProfiles" in ran.err


def test_sizes_come_from_what_the_cluster_has_resolved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the revisions, or from status when they are gone."""
    identity = source_hash(SLMDeploymentSpec.model_validate(build_spec("v2")).variants[0].source)
    listed = {"name": "int4", "sourceHash": identity, "digest": "", "reference": "", "sizeBytes": 7 * MIB}
    cases: tuple[tuple[list[Body], Body, int], ...] = (
        ([build_revision(2, "e07b52d1c4", "v2")], {}, 20),
        ([], {"variants": [listed]}, 7 * MIB),
    )
    for stored, status, expected in cases:
        cluster = cluster_with()
        cluster.put(build_body(build_status(**status)))
        cluster.stored = stored
        file = written(tmp_path, build_body(spec=build_spec("v2")))
        ran = run_cli(cluster, "fit", "-f", file, "--no-fetch", "-o", "json", capsys=capsys)
        (candidate,) = json.loads(ran.out)["items"][0]["candidates"]
        assert candidate["sizeBytes"] == expected and candidate["need"]["requestBytes"] == 256 * MIB


def test_a_model_that_is_followed_is_read_from_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = ModelSim(spec=spec_body(recipes=[{"name": "fp16"}]))
    followed: Body = build_spec() | {"model": {"name": "m", "from": {"name": "chat"}}}
    del followed["variants"]
    file = written(tmp_path, build_body(spec=followed))

    def ask() -> Ran:
        cluster = cluster_with()
        metadata = {"name": "chat", "namespace": "shop"}
        cluster.slmmodels = [{"metadata": metadata, "spec": sim.spec, "status": sim.status.to_body()}]
        return run_cli(cluster, "fit", "-f", file, "--no-fetch", "-o", "json", "-n", "shop", capsys=capsys)

    sim.settle()
    ran = ask()
    assert ran.code == 1 and "version aaaaaaaaaa: InProgress" in ran.err
    sim.work_off()
    ran = ask()
    (candidate,) = json.loads(ran.out)["items"][0]["candidates"]
    assert ran.code == 0 and candidate["sizeBytes"] == 1000
    assert candidate["need"]["weightsBytes"] + candidate["need"]["overheadBytes"] == GOOD.memory_bytes
    sim.status = SLMModelStatus()
    assert "has no version yet" in ask().err
    ran = run_cli(cluster_with(), "fit", "-f", file, "-n", "shop", capsys=capsys)
    assert ran.code != 0 and '"chat" not found' in ran.err


def test_an_http_manifest_is_read_with_the_models_configuration() -> None:
    geometry = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 64,
        "max_position_embeddings": 512,
    }
    listed = [
        {"path": path, "size": size, "sha256": "0" * 64}
        for path, size in (("config.json", 300), ("model.gguf", 5000))
    ]
    with serve(ScriptedApi()) as api:
        api.script("/m/manifest.json", (200, {"files": listed}))
        api.script("/m/config.json", (200, geometry))
        spec = SLMDeploymentSpec.model_validate(
            spec_with({"name": "int4", "source": {"http": {"url": f"{api.url}/m/manifest.json?v=1"}}})
        )
        found, notes = find_sizes(spec, revisions=[], variants=[], fetch=fetch_url)
        (resolved,) = found.values()
        assert notes == [] and resolved.manifest.size_bytes == 5300
        assert resolved.geometry is not None and resolved.geometry.cache_elements == 2 * 2 * 4 * 16
        with pytest.raises(UsageError, match="answers 404"):
            fetch_url(f"{api.url}/none", 10)
        with pytest.raises(UsageError, match="more than 10 bytes"):
            fetch_url(f"{api.url}/m/config.json", 10)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"hf": {"repo": "a/b"}}, "only the operator can ask"),
        ({"http": {"url": "https://x/m.json", "secretRef": {"name": "s"}}}, "wants a credential"),
        ({"http": {"url": "https://x/m.json"}}, "was not asked"),
        ({"http": {"url": "https://x/", "files": [{"path": "a", "sha256": "0" * 64}]}}, "files without size"),
    ],
)
def test_what_cannot_be_found_out_is_said_and_shown_as_unknown(
    origin: Body, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = offline(tmp_path, capsys, "--no-fetch", spec=spec_with({"name": "int4", "source": origin}))
    assert ran.code == 0 and words in ran.err and "variant int4" in ran.err
    assert "?" in ran.out.splitlines()[1]


@pytest.mark.parametrize(
    ("bodies", "nodes", "words"),
    [
        ([], NODES, "0 objects of kind SLMDeployment"),
        ([build_body(), build_body()], NODES, "2 objects of kind SLMDeployment"),
        ([build_body(spec=spec_with())], NODES, "spec.variants: give at least 1"),
        ([build_body(spec={"model": {}})], NODES, "spec.model.name"),
        (
            [build_body(spec=build_spec() | {"model": {"name": "m", "from": {"name": "x"}}})],
            NODES,
            "spec.model.from names an SLMModel",
        ),
        ([build_body(), PROFILE | {"spec": {"priority": "x"}}], NODES, "DeviceProfile pi: spec.priority"),
        ([build_body(), PROFILE | {"metadata": {}}], NODES, "metadata.name of a DeviceProfile"),
        ([build_body()], [PROFILE], "holds no node"),
        ([build_body()], [{"labels": {}}], "node 1: name is missing"),
        ([build_body()], [{"name": "a", "labels": {"x": True}}], "put numbers and true into quotes"),
        ([build_body()], [{"name": "a", "memory": "lots"}], "'lots' is not a quantity"),
        ([build_body()], ["a"], "holds str where an object is to be"),
    ],
)
def test_bad_input_is_one_line_with_the_place(
    bodies: list[Body], nodes: list[Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, fleet = written(tmp_path, *bodies), written(tmp_path, *nodes, name="fleet.yaml")
    ran = run_cli(ScriptedCluster(), "fit", "-f", file, "--nodes", fleet, "--no-fetch", capsys=capsys)
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1


def test_a_list_as_kubectl_prints_it_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = build_node("a") | {"kind": "Node"}
    node["status"]["allocatable"] = {"memory": "8Gi"}
    ran = offline(tmp_path, capsys, nodes=[{"kind": "List", "items": [node]}, PROFILE])
    assert ran.code == 0 and ran.out.splitlines()[1].split()[:3] == ["a", "-", "fp16"]


def test_too_many_combinations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [PROFILE | {"metadata": {"name": f"p{index}"}} for index in range(40)]
    ran = offline(tmp_path, capsys, nodes=[*NODES, *many])
    assert ran.code == 1 and "82 combinations, at most 64" in ran.err
