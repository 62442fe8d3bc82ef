# SPDX-License-Identifier: Apache-2.0
"""The fetch benchmark's arithmetic: a wrong sum or a row that hides a miss would be believed."""

from dataclasses import replace

import pytest

from e2e.bench.fetch import NodeResults, Row, build_node_rows, build_site_rows
from e2e.bench.fetch_lab import parse_sent_bytes
from e2e.bench.fetch_run import Measured, draw_kills, resent_percent
from e2e.bench.fetch_site import SiteMeasured

SIZE = 100 << 20
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls
    lo:     900      10    0    0    0     0          0         0      900      10    0    0    0     0
  eth0:11111111     200    0    0    0     0          0         0  2222222     300    0    0    0     0
"""


def test_bytes_sent_are_not_those_received() -> None:
    assert parse_sent_bytes(NET_DEV, device="eth0") == 2222222
    with pytest.raises(ValueError, match="no device eth1"):
        parse_sent_bytes(NET_DEV, device="eth1")


def test_kills_are_the_same_for_both_and_inside_the_file() -> None:
    kills = draw_kills(10, size=SIZE, seed=5)
    assert kills == draw_kills(10, size=SIZE, seed=5) == sorted(kills)
    assert len(kills) == 10
    assert 0 < kills[0] < kills[-1] < SIZE


def test_sent_again_leaves_out_what_headers_cost() -> None:
    assert resent_percent(SIZE + 5 * SIZE // 100, unbroken_bytes=SIZE + 3 * SIZE // 100, size=SIZE) == 2


def measured(seconds: float, *, line_bytes: int = SIZE, peak_mebibytes: int = 30) -> Measured:
    return Measured(seconds=seconds, line_bytes=line_bytes, peak_bytes=peak_mebibytes << 20, said={})


def node_results() -> NodeResults:
    return NodeResults(
        ours=[measured(10.2), measured(10.4), measured(10.3)],
        curl=[measured(10.0)] * 3,
        killed_ours=measured(15, line_bytes=SIZE + SIZE // 100),
        killed_curl=measured(15, line_bytes=SIZE + SIZE // 200),
        warm_seconds=0.2,
        verify_seconds=0.6,
        sha256sum_seconds=0.3,
    )


def rows_of(results: NodeResults) -> dict[str, Row]:
    return {row["measure"].split(",")[0]: row for row in build_node_rows(results, size=SIZE, link="a line")}


def test_node_rows_judge_each_target() -> None:
    rows = rows_of(node_results())
    assert rows["throughput"]["ratio"] == pytest.approx(10.0 / 10.3, abs=0.001)
    assert rows["throughput"]["met"] is True
    assert rows["sent again for 10 kills"]["ours"] == 1.0
    assert rows["sent again for 10 kills"]["met"] is True
    assert rows["peak memory"]["met"] is True
    assert rows["verify what is there (--deep)"]["ratio"] == 2.0


def test_a_missed_target_says_so() -> None:
    slow = node_results()
    slow.ours = [measured(10.6)] * 3
    slow.killed_ours = measured(15, line_bytes=SIZE + 3 * SIZE // 100, peak_mebibytes=65)
    rows = rows_of(slow)
    assert rows["throughput"]["met"] is False
    assert rows["sent again for 10 kills"]["met"] is False
    assert rows["peak memory"]["met"] is False, "memory counts in the runs that were killed too"


def test_site_rows_count_copies_by_what_one_copy_costs_on_the_line() -> None:
    alone = SiteMeasured(
        seconds=30, line_bytes=315, bytes_from_peers=0, agent_peak_bytes=0, node_seconds=(28, 29, 30)
    )
    shared = replace(
        alone, seconds=11, line_bytes=109, agent_peak_bytes=20 << 20, node_seconds=(10, 10.5, 11)
    )
    rows = build_site_rows(shared, alone, size=SIZE, link="a line")
    line, until, spread, memory = rows
    assert line["ours"] == pytest.approx(109 / 105, abs=0.001)
    assert line["met"] is True
    assert until["ratio"] == pytest.approx(11 / 30, abs=0.001)
    assert spread["ours"] == 1
    assert memory["met"] is True
    twice = build_site_rows(replace(shared, line_bytes=210), alone, size=SIZE, link="a line")
    assert twice[0]["met"] is False
