# SPDX-License-Identifier: Apache-2.0
"""Alerting rules: they ask for what is there, fire when they should, and have a runbook each."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.checks.check import Check, CheckError
from e2e.checks.exported import exported_series
from e2e.checks.helm import CHART, find, objects, render_chart
from e2e.checks.promql import find_problems, result_labels
from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import run
from e2e.rig.tools import tool
from slmcli.__main__ import build_parser

RULES: Final = CHART / "files" / "rules.yaml"
RULE_TESTS: Final = CHART / "tests" / "rules_test.yaml"
SCRAPES: Final = CHECKOUT / "manifests" / "prometheus.yaml"
RUNBOOKS: Final = CHECKOUT / "docs" / "runbooks.md"
SEVERITIES: Final = frozenset({"info", "warning", "critical"})
TEXTS: Final = frozenset({"summary", "description", "runbook_url"})
CHAPTERS: Final = ("**Meaning.**", "**First look.**", "**Cure.**")


def read_rules(text: str) -> list[dict[str, Any]]:
    """All rules of a rules file, in order."""
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def known_series(rules: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """What can be asked for: what the processes export, and what the recording rules make of it."""
    known = exported_series()
    for rule in rules:
        if "record" in rule:
            known[rule["record"]] = result_labels(rule["expr"], known)
    return known


def find_rule_problems(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Queries that ask in vain, texts that are missing or name a label that the alert has not."""
    known = exported_series()
    problems: list[str] = []
    for rule in rules:
        name = rule.get("alert") or rule.get("record", "")
        problems += [f"{name}: {problem}" for problem in find_problems(rule["expr"], known)]
        if "record" in rule:
            known[name] = result_labels(rule["expr"], known)
            continue
        if rule["labels"].get("severity") not in SEVERITIES:
            problems.append(f"{name}: severity must be one of {', '.join(sorted(SEVERITIES))}")
        if rule["annotations"].keys() != TEXTS:
            problems.append(f"{name}: annotations must be {', '.join(sorted(TEXTS))}")
        if not rule["annotations"].get("runbook_url", "").endswith(f"docs/runbooks.md#{name.lower()}"):
            problems.append(f"{name}: runbook_url must end in docs/runbooks.md#{name.lower()}")
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        problems += [
            f"{name}: its texts name {label}, which it has not"
            for label in sorted(named - result_labels(rule["expr"], known))
        ]
    return problems


def find_untested(rules: Iterable[Mapping[str, Any]], tests: Mapping[str, Any]) -> list[str]:
    """Alerts without a moment at which they fire, or without one at which they do not."""
    fires: set[str] = set()
    silent: set[str] = set()
    for test in tests["tests"]:
        for case in test.get("promql_expr_test", ()):
            named = re.search(r'alertname=~?"([^"]+)"', case["expr"])
            names = set(named[1].split("|")) if named else set()
            (fires if case["exp_samples"] else silent).update(names)
    problems = []
    for name in (rule["alert"] for rule in rules if "alert" in rule):
        if name not in fires:
            problems.append(f"{name}: no test in which it fires")
        if not any(re.fullmatch(pattern, name) for pattern in silent):
            problems.append(f"{name}: no test in which it does not fire")
    return problems


def find_runbook_problems(alerts: Iterable[str], text: str) -> list[str]:
    """Alerts without a chapter, chapters without an alert or a part, and commands that do not exist."""
    chapters = {part.partition("\n")[0].strip(): part for part in re.split(r"^### ", text, flags=re.M)[1:]}
    wanted = list(alerts)
    problems = [f"no chapter on {name}" for name in wanted if name not in chapters]
    problems += [f"a chapter on {name}, which is no alert" for name in chapters if name not in wanted]
    problems += [
        f"{name}: no {part}" for name, body in chapters.items() for part in CHAPTERS if part not in body
    ]
    commands = re.findall(r"kubectl slm ([a-z][^`#\n]*)", text)
    return problems + [f"kubectl slm {c}: {_refusal(c)}" for c in sorted(set(commands)) if _refusal(c)]


def _refusal(command: str) -> str:
    """Why `kubectl slm` would not take a command line; empty when it takes it."""
    words = shlex.split(command)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            build_parser(words).parse_args(words)
        except SystemExit:
            return said.getvalue().strip().rpartition("\n")[2]
    return ""


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise CheckError(f"{path.relative_to(CHECKOUT)}: " + "; ".join(problems))


def check_rules() -> str:
    """Every rule asks for series and labels that are exported."""
    rules = read_rules(RULES.read_text())
    _raise(RULES, find_rule_problems(rules))
    alerts = sum("alert" in rule for rule in rules)
    return f"{alerts} alerts and {len(rules) - alerts} records ask for what is exported"


def check_promtool() -> str:
    """Prometheus' own tool takes the rules, and every alert fires and is silent when it should."""
    tests = yaml.safe_load(RULE_TESTS.read_text())
    _raise(RULE_TESTS, find_untested(read_rules(RULES.read_text()), tests))
    run([str(tool("promtool")), "check", "rules", str(RULES)], timeout_seconds=60)
    run([str(tool("promtool")), "check", "config", "--syntax-only", str(SCRAPES)], timeout_seconds=60)
    run([str(tool("promtool")), "test", "rules", str(RULE_TESTS)], timeout_seconds=300)
    return f"promtool takes the rules; {len(tests['tests'])} scenarios of alerts hold"


def check_runbooks() -> str:
    """Each alert leads to a chapter, and the chapters' commands exist."""
    alerts = [rule["alert"] for rule in read_rules(RULES.read_text()) if "alert" in rule]
    _raise(RUNBOOKS, find_runbook_problems(alerts, RUNBOOKS.read_text()))
    return f"{len(alerts)} alerts have a chapter in docs/runbooks.md"


def check_rendered_rules() -> str:
    """The chart renders the same rules, or what the values make of them."""
    plain = yaml.safe_load(RULES.read_text())
    values: dict[str, Any] = {"monitoring": {"prometheusRule": {"enabled": True}}}
    if find(objects(render_chart(values)), "PrometheusRule")["spec"] != plain:
        raise CheckError("the chart's PrometheusRule is not files/rules.yaml")
    changed = {
        "enabled": True,
        "namespace": "monitoring",
        "labels": {"release": "x"},
        "alertLabels": {"team": "edge"},
        "overrides": {
            "SLMOpsLatencyHigh": {"for": "1h", "severity": "info", "expr": "vector(1)"},
            "SLMOpsRolledBack": {"enabled": False},
        },
    }
    values = {
        "monitoring": {"runbookBase": "https://wiki.example/slm", "prometheusRule": changed},
        "storeAgent": {"enabled": False},
    }
    body = find(objects(render_chart(values)), "PrometheusRule")
    rules = {rule.get("alert"): rule for group in body["spec"]["groups"] for rule in group["rules"]}
    latency = rules["SLMOpsLatencyHigh"]
    wrong = [
        text
        for text, holds in {
            "namespace": body["metadata"]["namespace"] == "monitoring",
            "labels": body["metadata"]["labels"]["release"] == "x",
            "alertLabels": rules["SLMOpsStoreFull"]["labels"] == {"team": "edge", "severity": "critical"},
            "overrides": (latency["for"], latency["labels"]["severity"], latency["expr"])
            == ("1h", "info", "vector(1)"),
            "overrides.enabled": "SLMOpsRolledBack" not in rules,
            "runbookBase": latency["annotations"]["runbook_url"]
            == "https://wiki.example/slm#slmopslatencyhigh",
            "storeAgent.enabled": "SLMOpsStoreAgentMissing" not in rules,
        }.items()
        if not holds
    ]
    if wrong:
        raise CheckError(f"monitoring.prometheusRule is not as the values say: {', '.join(wrong)}")
    return "the PrometheusRule is files/rules.yaml, and follows its values"


CHECKS: Final = (
    Check(name="rules", run=check_rules),
    Check(name="rule tests", run=check_promtool),
    Check(name="rules in the chart", run=check_rendered_rules),
    Check(name="runbooks", run=check_runbooks),
)
