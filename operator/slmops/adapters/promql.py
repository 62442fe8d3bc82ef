# SPDX-License-Identifier: Apache-2.0
"""PromQL for each preset and what its answer means: pure functions.

Each preset is one instant query, so that its counts are of one moment; rows carry the variant and,
where several counts are asked for, which of them a row is.

What counts as a request for the error rate: every finished one but those with a 4xx code. Those are
the client's doing (400 malformed, 429 more than the queue takes, 499 the client left) and say nothing
about whether the new revision answers rightly; counting them as successes would dilute errors.

`increase` does not see what a counter had before its first scrape. Both sides of every comparison lose
the same, at most one scrape interval per pod, and the evidence floor counts what is left.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from slmops.adapters.samples import build_drift, build_latency, build_score, build_share, build_speed
from slmops.model.observed import MetricQuery, Preset, Sample, Samples
from slmops.planning.queries import quote
from slmwire import metrics

MAX_VARIANTS: Final = 64
"""A deployment has 16 at most."""
_VARIANT: Final = re.compile(r"[a-z0-9-]{0,20}")
_PART: Final = "part"
"""Label that we put on a row: which count it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One series of an instant vector; the value may be NaN or infinite."""

    labels: Mapping[str, str]
    value: float


def build_query(query: MetricQuery) -> str:
    """The query that answers a preset over the pods of one revision. ValueError for any other."""
    window = f"[{max(1, math.ceil(query.window_seconds))}s]"
    match query.preset:
        case Preset.ERROR_RATE:
            counted = _select(metrics.REQUESTS, query, 'code!~"4.."')
            return _sum(f"increase({counted}{window})", "code")
        case Preset.LATENCY_P95:
            return _sum(f"increase({_select(f'{metrics.REQUEST_SECONDS}_bucket', query)}{window})", "le")
        case Preset.TTFT_P95:
            return _sum(f"increase({_select(f'{metrics.TTFT_SECONDS}_bucket', query)}{window})", "le")
        case Preset.TOKENS_PER_SECOND:
            names = {
                "tokens": metrics.GENERATED_TOKENS,
                "seconds": f"{metrics.REQUEST_SECONDS}_sum",
                "requests": f"{metrics.REQUEST_SECONDS}_count",
            }
            return _together(
                {part: _sum(f"increase({_select(name, query)}{window})") for part, name in names.items()}
            )
        case Preset.EVALUATION_SCORE:
            score = _select(metrics.EVALUATION_SCORE, query)
            cases = _select(metrics.EVALUATION_SAMPLES, query)
            # Both gauges come from one process with equal labels, so they match one to one.
            return _together({"weighted": _sum(f"{score} * {cases}"), "cases": _sum(cases)})
        case Preset.FEEDBACK_SCORE:
            names = {
                "weighted": f"{metrics.FEEDBACK_SCORE}_sum",
                "cases": f"{metrics.FEEDBACK_SCORE}_count",
            }
            return _together(
                {part: _sum(f"increase({_select(name, query)}{window})") for part, name in names.items()}
            )
        case Preset.REFUSAL_RATE:
            return _sum(f"increase({_select(metrics.REFUSAL_CHECKS, query)}{window})", "refused")
        case Preset.DRIFT:
            index, samples = _select(metrics.DRIFT, query), _select(metrics.DRIFT_SAMPLES, query)
            return _together(
                {"weighted": _sum(f"{index} * {samples}", "signal"), "cases": _sum(samples, "signal")}
            )
    raise ValueError(f"no PromQL for {query.preset}: it is read off the pods")


def read_rows(preset: Preset, rows: Iterable[Row]) -> Samples:
    """Samples by variant from the answer to `build_query`.

    A variant with a value that is no finite number is left out, and so is what no variant can be named:
    other pods may export anything under our labels, and names go into status. ValueError when labels are
    missing or there are more variants than any deployment has.
    """
    by_variant: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        variant = row.labels.get(metrics.LABEL_VARIANT, "")
        if _VARIANT.fullmatch(variant):
            by_variant[variant].append(row)
    if len(by_variant) > MAX_VARIANTS:
        raise ValueError(f"more than {MAX_VARIANTS} variants")
    found: dict[str, Sample] = {}
    for variant, group in by_variant.items():
        if all(math.isfinite(row.value) for row in group):
            sample = _read_group(preset, group)
            if sample is not None:
                found[variant] = sample
    return found


def _read_group(preset: Preset, rows: list[Row]) -> Sample | None:
    if preset is Preset.ERROR_RATE:
        errors = sum(row.value for row in rows if _label(row, "code").startswith("5"))
        return build_share(requests=sum(row.value for row in rows), errors=errors)
    if preset in (Preset.LATENCY_P95, Preset.TTFT_P95):
        buckets: dict[float, float] = defaultdict(float)
        for row in rows:
            # Servers of two ages may write one bound as "1" and as "1.0".
            buckets[float(_label(row, "le"))] += row.value
        return build_latency(buckets)
    if preset is Preset.REFUSAL_RATE:
        refused = sum(row.value for row in rows if _label(row, "refused") == "true")
        return build_share(requests=sum(row.value for row in rows), errors=refused)
    if preset is Preset.DRIFT:
        return _read_drift(rows)
    parts: dict[str, float] = defaultdict(float)
    for row in rows:
        parts[_label(row, _PART)] += row.value
    if preset is Preset.TOKENS_PER_SECOND:
        return build_speed(tokens=parts["tokens"], seconds=parts["seconds"], requests=parts["requests"])
    return build_score(weighted=parts["weighted"], cases=parts["cases"])


def _read_drift(rows: list[Row]) -> Sample | None:
    parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        signal = _label(row, "signal")
        if signal in metrics.DRIFT_SIGNALS:
            parts[signal][_label(row, _PART)] += row.value
    return build_drift({signal: (found["weighted"], found["cases"]) for signal, found in parts.items()})


def _label(row: Row, name: str) -> str:
    if name not in row.labels:
        raise ValueError(f"a row without the label {name}")
    return row.labels[name]


def _sum(expression: str, *labels: str) -> str:
    return f"sum by ({','.join((metrics.LABEL_VARIANT, *labels))}) ({expression})"


def _together(parts: Mapping[str, str]) -> str:
    """Several queries as one whose rows say which of them they belong to."""
    return " or ".join(
        f'label_replace({text}, "{_PART}", "{part}", "{metrics.LABEL_VARIANT}", ".*")'
        for part, text in parts.items()
    )


def _select(metric: str, query: MetricQuery, *extra: str) -> str:
    matchers = [
        f"{metrics.LABEL_NAMESPACE}={quote(query.namespace)}",
        f"{metrics.LABEL_DEPLOYMENT}={quote(query.deployment)}",
        f"{metrics.LABEL_REVISION}={quote(query.revision)}",
        *extra,
    ]
    return f"{metric}{{{','.join(matchers)}}}"
