# SPDX-License-Identifier: Apache-2.0
"""The fleet benchmark's arithmetic: a wrong sum or a row that hides a miss would be believed."""

import argparse
from typing import Any

import pytest
import yaml

from e2e.bench.fleet import parse_names, parse_size
from e2e.bench.fleet_measure import Settled, count_settled, count_writes
from e2e.bench.fleet_numbers import Page, cpu_seconds, growth, memory_bytes, quantile, read_page
from e2e.bench.fleet_peers import ARGO_REQUESTS, build_pod_template, promoted_daemon_sets, promoted_rollouts
from e2e.bench.fleet_rows import (
    ARGO,
    DAEMON_SETS,
    IDLE,
    MOVES,
    OURS,
    SAME_WORK,
    Rest,
    Row,
    Run,
    build_idle_rows,
    build_moves_rows,
    build_same_work_rows,
    in_short,
    replace_part,
)
from e2e.bench.fleet_sides import OUR_REQUESTS, build_deployment, promoted_deployments
from e2e.bench.fleet_site import answer_query, render_kwok
from e2e.rig.fleet import KWOK_CONFIG
from slmops.api import SLMDeploymentSpec
from slmops.planning.queries import quote

BEFORE = """\
# TYPE slmops_kubernetes_requests counter
slmops_kubernetes_requests_total{verb="patch",resource="nodes",code="200"} 10.0
slmops_kubernetes_requests_total{verb="update",resource="leases",code="200"} 5.0
"""
AFTER = """\
# TYPE slmops_kubernetes_requests counter
slmops_kubernetes_requests_total{verb="patch",resource="nodes",code="200"} 14.0
slmops_kubernetes_requests_total{verb="patch",resource="nodes",code="409"} 1.0
slmops_kubernetes_requests_total{verb="get",resource="nodes",code="200"} 3.0
slmops_kubernetes_requests_total{verb="apply",resource="services",code="200"} 2.0
slmops_kubernetes_requests_total{verb="update",resource="leases",code="200"} 9.0
"""


def test_growth_counts_series_that_are_new() -> None:
    before, after = read_page(BEFORE), read_page(AFTER)
    assert growth(before, after, "slmops_kubernetes_requests_total") == 14
    assert growth(before, after, "never counted") == 0


def test_writes_leave_out_what_reads_and_what_renews_the_lease() -> None:
    assert count_writes(read_page(BEFORE), read_page(AFTER), OUR_REQUESTS) == {"nodes": 5, "services": 2}
    text = (
        'controller_clientset_k8s_request_total{kind="rollouts",verb="Patch"} 3\n'
        'controller_clientset_k8s_request_total{kind="replicasets",verb="Update"} 2\n'
        'controller_clientset_k8s_request_total{kind="pods",verb="List"} 1\n'
        'controller_clientset_k8s_request_total{kind="leases",verb="Update"} 7\n'
    )
    assert count_writes((), read_page(text), ARGO_REQUESTS) == {"rollouts": 3, "replicasets": 2}


def buckets(*counts: tuple[str, float]) -> Page:
    return read_page(
        "# TYPE seconds histogram\n"
        + "".join(f'seconds_bucket{{le="{bound}"}} {count}\n' for bound, count in counts)
    )


def test_quantile_is_linear_in_its_bucket_and_of_the_time_between() -> None:
    before = buckets(("0.1", 100), ("0.2", 100), ("+Inf", 100))
    after = buckets(("0.1", 150), ("0.2", 200), ("+Inf", 200))
    assert quantile(before, after, "seconds", 0.95) == pytest.approx(0.19)
    assert quantile(before, after, "seconds", 0.25) == pytest.approx(0.05)
    assert quantile(after, after, "seconds", 0.95) is None
    assert quantile((), (), "seconds", 0.95) is None
    assert quantile((), buckets(("0.1", 1), ("+Inf", 100)), "seconds", 0.95) == pytest.approx(0.1)


def test_process_files_are_read_by_field() -> None:
    stat = "42 (a (b) c) S " + " ".join(str(number) for number in range(4, 53))
    assert cpu_seconds(stat, ticks_per_second=100) == pytest.approx((14 + 15) / 100)
    assert memory_bytes("Name:\tpython\nVmHWM:\t  2048 kB\n", "VmHWM") == 2048 * 1024
    with pytest.raises(ValueError, match="VmRSS"):
        memory_bytes("Name:\tpython\n", "VmRSS")


def test_settled_needs_all_new_pods_and_no_other() -> None:
    marks = {"d0": "new", "d1": "new", "d2": "new", "d3": "new"}
    pods = [
        *[(("d0", "new"), True)] * 2,
        *[(("d1", "new"), True)] * 2,
        (("d1", "old"), False),  # on its way out
        (("d2", "new"), True),  # one is missing
        *[(("d3", "new"), True)] * 2,
        (("d3", ""), True),  # fetches ahead
        *[(("d4", "new"), True)] * 2,  # not promoted
    ]
    assert count_settled(pods, marks, pods_each=2) == Settled(done=1, moved=7)


def run(**more: Any) -> Run:
    values: dict[str, Any] = {
        "wanted": 4, "done": 4, "moved": 20, "wall_seconds": 50.0, "cpu_seconds": 5.0,
        "peak_bytes": 100_000_000, "requests": 40.0, "writes": {"nodes": 50.0, "events": 30.0},
        "server_writes": 100.0, "event_to_write_seconds": 0.2,
    }  # fmt: skip
    return Run(**(values | more))


def by_measure(rows: list[Row], text: str, peer: str = "") -> Row:
    (row,) = (r for r in rows if text in r["measure"] and r["peer_name"].startswith(peer))
    return row


def test_same_work_is_judged_against_each_peer() -> None:
    runs = {
        OURS: run(),
        ARGO: run(wall_seconds=110.0, requests=90.0),
        DAEMON_SETS: run(wall_seconds=40.0, requests=None, cpu_seconds=None, peak_bytes=None),
    }
    rows = build_same_work_rows(runs, load="x")
    against_argo, floor = by_measure(rows, "until all", "Argo"), by_measure(rows, "until all", "plain")
    assert (against_argo["ratio"], against_argo["met"]) == (pytest.approx(0.4545), True)
    assert (floor["ratio"], floor["met"], floor["target"]) == (1.25, False, "<= 1.2 x peer")
    requests = by_measure(rows, "requests of the controller")
    assert (requests["ratio"], requests["met"]) == (pytest.approx(0.4444), False)


def test_ours_alone_has_rows_that_judge_nothing_against_a_peer() -> None:
    rows = build_same_work_rows({OURS: run()}, load="x")
    wall = by_measure(rows, "until all")
    assert (wall["ours"], wall["peer"], wall["met"]) == (50.0, None, None)


def test_what_was_not_reached_is_said_and_never_met() -> None:
    late = run(done=3, problem="the time was over")
    rows = build_same_work_rows({OURS: late, ARGO: run(wall_seconds=500.0)}, load="x")
    wall = by_measure(rows, "until all")
    assert (wall["ours"], wall["met"]) == (None, False)
    assert "ours reached 3 of 4: the time was over" in wall["load"]
    assert by_measure(rows, "promoted")["met"] is False
    # The same for the peer: an unfinished race is no comparison.
    rows = build_same_work_rows({OURS: run(), ARGO: late}, load="x")
    assert (by_measure(rows, "until all")["peer"], by_measure(rows, "until all")["met"]) == (None, None)


def test_a_problem_in_a_table_is_short_and_names_no_folder_of_the_machine() -> None:
    text = "controller is not running; the end of /home/u/.cache/x/run/controller.log:\nTraceback"
    assert in_short(text) == "controller is not running"
    assert in_short("/home/u/.cache/tools/kubectl --kubeconfig /x/y.kubeconfig exited 1: no") == (
        "/kubectl --kubeconfig /y.kubeconfig exited 1: no"
    )
    assert len(in_short("x" * 5000)) == 200


def test_moves_are_counted_for_each_node_that_moved() -> None:
    rows = build_moves_rows(run(), load="x")
    assert (by_measure(rows, "writes per node")["ours"], by_measure(rows, "writes per node")["met"]) == (
        4.0,
        False,
    )
    assert by_measure(rows, "to events")["ours"] == 1.5
    assert (by_measure(rows, "CPU")["ours"], by_measure(rows, "CPU")["met"]) == (10.0, True)
    assert (by_measure(rows, "p95")["ours"], by_measure(rows, "p95")["met"]) == (200.0, True)
    dead = Run(wanted=4, done=0, moved=0, wall_seconds=0.0, problem="died")
    assert all(row["met"] in (False, None) for row in build_moves_rows(dead, load="x"))


def test_idle_without_an_install_has_no_figures_and_is_missed() -> None:
    rest = Rest(seconds=60, cpu_seconds=0.3, resident_bytes=10**8, requests=20, beats=500)
    rows = build_idle_rows(run(), rest, load="x")
    assert (by_measure(rows, "CPU")["ours"], by_measure(rows, "CPU")["met"]) == (0.5, True)
    rows = build_idle_rows(run(done=0, problem="died"), None, load="x")
    assert (by_measure(rows, "CPU")["ours"], by_measure(rows, "CPU")["met"]) == (None, False)


def test_a_part_replaces_its_own_rows_alone() -> None:
    old: list[Row] = [{"measure": f"{part}: x", "ours": 1} for part in (IDLE, SAME_WORK)]
    new: list[Row] = [{"measure": f"{MOVES}: x", "ours": 2}, {"measure": f"{IDLE}: x", "ours": 2}]
    rows = replace_part(replace_part(old, MOVES, new[:1]), IDLE, new[1:])
    assert [(row["measure"], row["ours"]) for row in rows] == [
        ("same work: x", 1),
        ("moves: x", 2),
        ("idle: x", 2),
    ]


def test_promotion_is_read_off_the_status_of_the_version_asked_for() -> None:
    status = {
        "modelVersion": "v2",
        "stableRevision": "r2",
        "updateRevision": "r2",
        "rollout": {"step": "Completed"},
    }
    item = {"metadata": {"name": "d0"}, "status": status}
    assert promoted_deployments([item, {"metadata": {"name": "d1"}}], "v2") == {"d0": "r2"}
    assert promoted_deployments([item], "v3") == {}
    assert promoted_deployments([item | {"status": status | {"stableRevision": "r1"}}], "v2") == {}

    spec = {"template": build_pod_template("d0", "v2")}
    head = {"metadata": {"name": "d0", "generation": 2}, "spec": spec}
    rollout = {"phase": "Healthy", "observedGeneration": "2", "stableRS": "a", "currentPodHash": "a"}
    assert promoted_rollouts([head | {"status": rollout}], "v2") == {"d0": "v2"}
    assert promoted_rollouts([head | {"status": rollout | {"observedGeneration": "1"}}], "v2") == {}
    sets = {
        "observedGeneration": 2,
        "desiredNumberScheduled": 3,
        "updatedNumberScheduled": 3,
        "numberAvailable": 3,
    }
    assert promoted_daemon_sets([head | {"status": sets}], "v2") == {"d0": "v2"}
    assert promoted_daemon_sets([head | {"status": sets | {"numberAvailable": 2}}], "v2") == {}


def test_the_deployment_is_a_valid_one_and_the_peers_pod_is_its_pod() -> None:
    SLMDeploymentSpec.model_validate(build_deployment("d0", "v1")["spec"])
    template = build_pod_template("d0", "v1")
    assert [container["name"] for container in template["spec"]["containers"]] == ["server"]
    assert template["spec"]["nodeSelector"] == {"bench.slmops.dev/group": "d0"}


def test_evidence_is_healthy_for_both_sides() -> None:
    def value(promql: str) -> list[str]:
        return [row["value"][1] for row in answer_query(promql, 0.0)["data"]["result"]]

    assert value(f"sum(increase(requests{{deployment={quote('d0')}}}[60s]))") == ["500"]
    assert value('sum(increase(requests{code=~"5.."}[60s]))') == []
    assert value("sum(errors) / sum(requests)") == ["0"]


def test_fake_nodes_report_at_their_own_times() -> None:
    stages = {d["metadata"]["name"]: d for d in yaml.safe_load_all(render_kwok(KWOK_CONFIG.read_text()))
              if "metadata" in d}  # fmt: skip
    assert stages["node-heartbeat"]["spec"]["delay"]["durationMilliseconds"] == 10_000
    assert {"node-initialize", "pod-ready", "pod-delete"} <= stages.keys()


def test_sizes_and_names_are_checked() -> None:
    assert (parse_size("100x5").deployments, parse_size("100x5").nodes) == (100, 5)
    assert parse_names("C,A", ("A", "B", "C")) == ("A", "C")
    for text in ("100", "0x5", "5x", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="DEPLOYMENTSxNODES"):
            parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError, match="must be of A, B"):
        parse_names("A,D", ("A", "B"))
