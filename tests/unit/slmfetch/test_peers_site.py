# SPDX-License-Identifier: Apache-2.0
"""Sites of real agent and fetcher processes: one copy over the uplink, whoever dies meanwhile."""

import contextlib
import hashlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from slmfetch.peers import rank
from slmfetch.store import Store
from slmwire.distribution import Distribution
from slmwire.manifest import Manifest
from slmwire.reasons import Termination, parse_termination
from tests.unit.slmfetch.agents import start_agent
from tests.unit.slmfetch.kit import (
    assert_consistent,
    manifest_of,
    noise,
    start_fetcher,
    tree_content,
    wait_until,
)
from tests.unit.slmfetch.origin import Fault, Origin

SIZE = 12_000_000
FILES = {"model.onnx": noise(SIZE, 21), "tokenizer.json": noise(400_000, 22), "config.json": noise(900, 23)}
SHA = hashlib.sha256(FILES["model.onnx"]).hexdigest()
TOTAL = sum(len(data) for data in FILES.values())
NODES = rank(SHA, ["n1", "n2", "n3"])
"""By their claim to the large file."""


@dataclass(slots=True, kw_only=True)
class Site:
    origin: Origin
    folder: Path
    port: int
    files: dict[str, bytes]
    manifest: Manifest
    agents: dict[str, subprocess.Popen[str]]
    fetchers: dict[str, subprocess.Popen[str]]

    def store(self, name: str) -> Store:
        return Store(self.folder / name / "store")

    def start_fetch(self, name: str) -> None:
        self.fetchers[name] = start_fetcher(
            ["fetch", "--serve"],
            self.store(name),
            self.folder / name,
            self.manifest,
            SLM_NODE=name,
            SLM_DISTRIBUTION_FILE=str(self.folder / "distribution.json"),
        )

    def start_all_and_wait(self) -> None:
        """Until each node has some of the large file, and none all of it."""
        self.origin.bytes_per_second = 1_000_000  # 12 s for the whole
        for name in NODES:
            self.start_fetch(name)
        wait_until(lambda: min(self.arrived(name) for name in NODES) > SIZE // 20)
        self.origin.bytes_per_second = 8_000_000

    def finish(self, name: str) -> Termination:
        output = self.fetchers.pop(name).communicate(timeout=60)[0]
        said = parse_termination((self.folder / name / "termination").read_text())
        assert said is not None
        assert said.reason == "", output
        assert tree_content(self.store(name), self.manifest) == self.files
        assert list(self.store(name).partial.iterdir()) == []
        assert_consistent(self.store(name))
        return said

    def arrived(self, name: str) -> int:
        path = self.store(name).partial / f"{SHA}.part"
        return path.stat().st_size if path.exists() else 0


@pytest.fixture
def site(origin: Origin, tmp_path: Path) -> Iterator[Site]:
    for path, data in FILES.items():
        origin.files[f"/m/{path}"] = data
    origin.bytes_per_second = 8_000_000
    with socket.create_server(("127.0.3.1", 0)) as free:
        port = free.getsockname()[1]
    addresses = {name: f"127.0.3.{index}" for index, name in enumerate(NODES, 1)}
    (tmp_path / "distribution.json").write_text(
        Distribution(peer_port=port, sites={"shop-7": addresses}).to_json()
    )
    built = Site(
        origin=origin,
        folder=tmp_path,
        port=port,
        files=FILES,
        manifest=manifest_of(FILES, f"{origin.url}/m"),
        agents={},
        fetchers={},
    )
    try:
        for name, address in addresses.items():
            built.store(name).prepare()
            built.agents[name] = start_agent(built.store(name), tmp_path / name, address=address, port=port)
        yield built
    finally:
        for process in [*built.agents.values(), *built.fetchers.values()]:
            process.kill()
            with contextlib.suppress(ValueError):
                process.communicate(timeout=10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_three_nodes_take_one_copy_from_the_source(site: Site, order: Sequence[int]) -> None:
    for index in order:
        site.start_fetch(NODES[index])
    said = {name: site.finish(name) for name in NODES}
    assert site.origin.bytes_sent <= 1.05 * TOTAL
    assert sum(s.bytes_from_peers for s in said.values()) >= 2 * SIZE
    assert all(s.bytes_downloaded == TOTAL for s in said.values())


def test_a_file_over_several_connections_comes_once(site: Site) -> None:
    data = noise(40 << 20, 24)
    site.files = {"big.onnx": data}
    site.manifest = manifest_of(site.files, f"{site.origin.url}/m")
    site.origin.files["/m/big.onnx"] = data
    for name in NODES:
        site.start_fetch(name)
    said = {name: site.finish(name) for name in NODES}
    assert site.origin.bytes_sent <= 1.05 * len(data)
    assert len(site.origin.seen) >= 4, "in pieces, by one node"
    assert sorted(s.bytes_from_peers for s in said.values())[1:] == [len(data)] * 2


def test_a_node_that_comes_later_takes_nothing_from_the_source(site: Site) -> None:
    site.start_fetch(NODES[0])
    site.finish(NODES[0])
    before = site.origin.bytes_sent
    for name in NODES[1:]:
        site.start_fetch(name)
    for name in NODES[1:]:
        assert site.finish(name).bytes_from_peers == TOTAL
    assert site.origin.bytes_sent == before


def test_a_dead_leader_does_not_hold_up_the_others(site: Site) -> None:
    site.agents[NODES[0]].kill()
    site.agents[NODES[0]].wait()
    for name in NODES[1:]:
        site.start_fetch(name)
    for name in NODES[1:]:
        site.finish(name)
    assert site.origin.bytes_sent <= 1.05 * TOTAL


def test_a_leader_killed_in_the_middle_with_its_agent(site: Site) -> None:
    site.start_all_and_wait()
    for process in (site.agents[NODES[0]], site.fetchers[NODES[0]]):
        process.kill()
        process.wait()
    for name in NODES[1:]:
        site.finish(name)
    # What the leader alone had when it died is lost.
    assert site.origin.bytes_sent <= 1.1 * TOTAL


def test_a_leader_whose_fetch_is_killed_in_the_middle_and_comes_back(site: Site) -> None:
    site.start_all_and_wait()
    killed = site.fetchers.pop(NODES[0])
    killed.kill()
    killed.communicate()
    site.start_fetch(NODES[0])
    for name in NODES:
        site.finish(name)
    assert site.origin.bytes_sent <= 1.05 * TOTAL


def test_the_source_breaks_off_and_still_one_copy_is_taken(site: Site) -> None:
    site.origin.faults["/m/model.onnx"] = [Fault(truncate_after=3_000_000), Fault(status=503)]
    for name in NODES:
        site.start_fetch(name)
    for name in NODES:
        site.finish(name)
    assert site.origin.bytes_sent <= 1.05 * TOTAL
