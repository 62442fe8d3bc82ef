# SPDX-License-Identifier: Apache-2.0
"""The checks of rules and dashboards find what they are there to find."""

from typing import Any

import pytest
import yaml

from e2e.checks.exported import exported_series
from e2e.checks.monitoring import (
    RULES,
    find_rule_problems,
    find_runbook_problems,
    find_untested,
    known_series,
    read_rules,
)
from e2e.checks.promql import find_problems, result_labels
from slmwire import metrics as names

KNOWN = exported_series()
ALERT = """
groups:
  - name: g
    rules:
      - record: slm_node:slmstore_free:min
        expr: min by (slm_node) (slmstore_free_bytes)
      - alert: SLMOpsX
        expr: slm_node:slmstore_free:min < 1
        labels: {severity: info}
        annotations:
          summary: "{{ $labels.slm_node }}"
          description: x
          runbook_url: https://example.com/docs/runbooks.md#slmopsx
"""


def test_every_name_of_the_wire_is_exported() -> None:
    counters = {value for key, value in vars(names).items() if key.isupper() and str(value).startswith("slm")}
    bare = {
        name.removesuffix(end)
        for name in KNOWN
        for end in ("", "_bucket", "_sum")
        if name.startswith("slmserve_")
    }
    assert {name for name in counters if name.startswith("slmserve_")} <= bare
    assert set(names.CONSTANT_LABELS) <= KNOWN[names.REQUESTS]
    assert {"endpoint", "code"} <= KNOWN[names.REQUESTS]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(rate(slmserve_requests_totl[5m]))", "no process exports slmserve_requests_totl"),
        ('slmops_nodes{status="ready"}', "slmops_nodes has no label status"),
        ('slmops_nodes{state="redy"}', "state is never 'redy'"),
        ('slmops_rollout_held{reason=~"NoData|Nothing"}', "reason is never 'Nothing'"),
        ("sum by (site) (slmops_nodes)", "names site, which is not there"),
        ("sum by (slm_node) (sum by (slm_variant) (slmserve_queue_depth))", "names slm_node"),
        ("histogram_quantile(0.9, sum by (slm_node) (rate(slmserve_inter_token_seconds_bucket[5m])))", "le"),
        ("slmstore_bytes / on (namespace, deployment) slmops_nodes", "deployment is not on both sides"),
        ('label_replace(slmstore_bytes, "a", "$1", "deployment", "(.+)")', "reads deployment"),
        ("sum(slmstore_bytes", "cannot be parsed"),
    ],
)
def test_what_is_not_there_is_named(query: str, said: str) -> None:
    assert any(said in problem for problem in find_problems(query, KNOWN)), find_problems(query, KNOWN)


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("sum(slmstore_bytes)", set()),
        ("sum by (slm_node, pod) (slmstore_bytes)", {"slm_node", "pod"}),
        ("sum by (slm_node) (slmstore_bytes) / on () group_left () sum(slmstore_bytes)", {"slm_node"}),
        ('label_replace(sum by (pod) (slmstore_bytes), "a", "$1", "pod", "(.+)")', {"pod", "a"}),
        ("max_over_time(sum by (pod) (slmstore_bytes)[1h:5m])", {"pod"}),
    ],
)
def test_labels_of_a_result(query: str, labels: set[str]) -> None:
    assert find_problems(query, KNOWN) == []
    assert result_labels(query, KNOWN) == labels


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("severity: info", "severity: urgent", "severity must be one of"),
        ("#slmopsx", "#elsewhere", "must end in docs/runbooks.md#slmopsx"),
        ("description: x", "descriptoin: x", "annotations must be"),
        ("$labels.slm_node", "$labels.slm_deployment", "its texts name slm_deployment"),
        ("slmstore_free_bytes", "slmstore_fre_bytes", "no process exports slmstore_fre_bytes"),
    ],
)
def test_a_bad_rule_is_named(old: str, new: str, said: str) -> None:
    assert find_rule_problems(read_rules(ALERT)) == []
    problems = find_rule_problems(read_rules(ALERT.replace(old, new)))
    assert any(said in problem for problem in problems), problems


def test_a_record_has_only_the_labels_that_are_left() -> None:
    assert known_series(read_rules(ALERT))["slm_node:slmstore_free:min"] == {"slm_node"}


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ([], ["SLMOpsX: no test in which it fires", "SLMOpsX: no test in which it does not fire"]),
        (
            [{"expr": 'ALERTS{alertname="SLMOpsX"}', "exp_samples": [1]}],
            ["SLMOpsX: no test in which it does"],
        ),
        (
            [{"expr": 'ALERTS{alertname=~"SLMOps.*"}', "exp_samples": []}],
            ["SLMOpsX: no test in which it fires"],
        ),
    ],
)
def test_an_alert_is_tested_both_ways(cases: list[dict[str, Any]], said: list[str]) -> None:
    problems = find_untested(read_rules(ALERT), {"tests": [{"promql_expr_test": cases}]})
    assert len(problems) == len(said)
    assert all(problem.startswith(text) for problem, text in zip(problems, said, strict=True))


RUNBOOK = (
    "### SLMOpsX\n**Meaning.** a\n**First look.**\n```sh\nkubectl slm status NAME -n X\n```\n**Cure.** b\n"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RUNBOOK, ""),
        ("", "no chapter on SLMOpsX"),
        (RUNBOOK + RUNBOOK.replace("SLMOpsX", "SLMOpsY"), "a chapter on SLMOpsY, which is no alert"),
        (RUNBOOK.replace("**Cure.**", ""), "SLMOpsX: no **Cure.**"),
        (RUNBOOK.replace("slm status", "slm state"), "invalid choice: 'state'"),
        (RUNBOOK.replace("-n X", "--everything"), "unrecognized arguments: --everything"),
    ],
)
def test_a_runbook_is_held_against_the_alerts_and_the_commands(text: str, said: str) -> None:
    problems = find_runbook_problems(["SLMOpsX"], text)
    assert (said in "; ".join(problems)) if said else problems == []


def test_alert_names_are_unique() -> None:
    alerts = [rule["alert"] for rule in read_rules(RULES.read_text()) if "alert" in rule]
    assert len(alerts) == len(set(alerts)) > 20
    assert yaml.safe_load(RULES.read_text())["groups"][0]["name"] == "slmops.records"
