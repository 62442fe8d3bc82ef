# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.evidence`: false rollbacks and missed regressions of the rollout's sequential test.

Three rules look at the same seeded traces every ten seconds: our anytime-valid evidence, a naive
threshold on the point estimate, and counting failed measurements as Argo Rollouts does. A healthy canary
that was rolled back is a false rollback. A regressed one that was not, by the end of the window and with
enough samples on both sides, passes: missed. Nothing runs but arithmetic; no clock is involved.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from e2e.bench.evidence_rules import MIN_SAMPLES, PEER_NAMES, RULES, TESTS
from e2e.bench.evidence_traces import (
    CANARY_NODES,
    REQUESTS_PER_LOOK,
    SCENARIOS,
    STABLE_NODES,
    Rates,
    RateTrace,
    Scenario,
    draw_trace,
)

RESULT: Final = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "evidence.json"
SEED: Final = 20250601
CHUNK: Final = 50
TARGET_FALSE_PERCENT: Final = 1.0
TARGET_MISSED_PERCENT: Final = 5.0

Row = dict[str, Any]
Looks = dict[str, list[int | None]]
"""By rule: the look of the rollback in each trace that had enough samples to pass."""


def run_chunk(index: int, chunk: int, traces: int) -> Looks:
    """The rules on some traces of scenario number `index`."""
    scenario = SCENARIOS[index]
    random = np.random.default_rng([SEED, index, chunk])
    looks: Looks = {name: [] for name in RULES}
    for _ in range(traces):
        trace = draw_trace(scenario, random)
        if isinstance(trace, RateTrace):
            samples = min(trace.canary_total[-1], trace.stable_total[-1])
        else:
            samples = min(trace.canary[-1, -1], trace.stable[-1, -1])
        if samples < MIN_SAMPLES:
            raise ValueError(f"{scenario.name}: {samples:g} samples, so that it could not pass")
        for name, rule in RULES.items():
            looks[name].append(rule(scenario.law, trace))
    return looks


def run_scenarios(traces: int) -> list[Looks]:
    """All scenarios, spread over the processors; the result does not depend on how many there are."""
    chunks = [(index, chunk) for index in range(len(SCENARIOS)) for chunk in range(-(-traces // CHUNK))]
    results: list[Looks] = [{name: [] for name in RULES} for _ in SCENARIOS]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [
            (index, pool.submit(run_chunk, index, chunk, min(CHUNK, traces - chunk * CHUNK)))
            for index, chunk in chunks
        ]
        for index, future in futures:
            for name, looks in future.result().items():
                results[index][name] += looks
    return results


def build_rows(scenario: Scenario, looks: Looks) -> list[Row]:
    """One row per peer, and for a regression one per peer for how soon it is seen."""
    kind = "missed" if scenario.regressed else "false rollbacks"
    limit = TARGET_MISSED_PERCENT if scenario.regressed else TARGET_FALSE_PERCENT
    per_look = REQUESTS_PER_LOOK * CANARY_NODES
    requests = (
        f"{per_look * scenario.looks:g} canary and {REQUESTS_PER_LOOK * STABLE_NODES * scenario.looks:g}"
    )
    law = scenario.law
    allowed = (
        f"{law.allowed:.0%}" if isinstance(law, Rates) and law.allowed else f"{law.relative:.0%} relative"
    )
    traces = f"{len(looks['ours'])} traces of {scenario.looks} looks"
    load = f"{traces}, {requests} stable requests, {allowed} allowed"

    def share(rule: str) -> float:
        wrong = sum((look is None) == scenario.regressed for look in looks[rule])
        return round(100 * wrong / len(looks[rule]), 2)

    rows = [
        _row(
            f"{kind}: {scenario.name}",
            "% of traces",
            share("ours"),
            share(peer),
            peer,
            load,
            target=limit,
        )
        for peer in PEER_NAMES
    ]
    if scenario.regressed:
        seen = {rule: [look for look in looks[rule] if look is not None] for rule in RULES}
        middle = {
            rule: per_look * (statistics.median(found) + 1) if found else None for rule, found in seen.items()
        }
        rows.append(
            _row(
                f"canary requests until the rollback, median: {scenario.name}",
                "requests",
                middle["ours"],
                middle["counting"],
                "counting",
                load,
            )
        )
    return rows


def _row(
    measure: str,
    unit: str,
    value: float | None,
    peer_value: float | None,
    peer: str,
    load: str,
    *,
    target: float | None = None,
) -> Row:
    return {
        "measure": measure,
        "unit": unit,
        "ours": value,
        "peer": peer_value,
        "peer_name": PEER_NAMES[peer],
        "ratio": round(value / peer_value, 3) if value is not None and peer_value else None,
        "target": None if target is None else f"<= {target:g}",
        "met": None if target is None or value is None else value <= target,
        "load": load,
    }


def print_rows(rows: Sequence[Row]) -> None:
    """As a table."""
    for row in rows:
        verdict = {None: "", True: "ok", False: "MISSED"}[row["met"]]
        values = " ".join(f"{'-' if row[who] is None else row[who]:>8}" for who in ("ours", "peer"))
        print(f"{row['measure']:<88} {values} {row['peer_name']:<31}{verdict}")


def main() -> int:
    """Print and write the result; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=1000, help=f"per scenario; {TESTS} tests share 1 %%")
    traces = parser.parse_args().traces
    results = run_scenarios(traces)
    rows = [
        row for scenario, looks in zip(SCENARIOS, results, strict=True) for row in build_rows(scenario, looks)
    ]
    print_rows(rows)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
