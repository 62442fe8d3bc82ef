# SPDX-License-Identifier: Apache-2.0
"""Reads what an inference pod says at /metrics: the few series that judge it, added up.

The text comes from a pod that anybody who may write an SLMDeployment chose, so everything in it is
bounded and checked. Names and meaning are in `slmwire.metrics`; the format is Prometheus's text 0.0.4.
"""

import math
import re
from array import array
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from slmwire import metrics

MAX_LINES: Final = 2000
"""Of series that are looked at; the server has about 120."""
MAX_TEXT_LINES: Final = 20_000
"""Of all kinds: reading a megabyte of line breaks would hold up everything else in the process."""
MAX_LINE_LETTERS: Final = 8192
MAX_BUCKETS: Final = 100
PROCESS_START: Final = "process_start_time_seconds"

_LATENCY: Final = f"{metrics.REQUEST_SECONDS}_bucket"
_FIRST_TOKEN: Final = f"{metrics.TTFT_SECONDS}_bucket"
_SECONDS: Final = f"{metrics.REQUEST_SECONDS}_sum"
_JUDGED_SUM: Final = f"{metrics.FEEDBACK_SCORE}_sum"
_JUDGED_COUNT: Final = f"{metrics.FEEDBACK_SCORE}_count"
_NAMES: Final = frozenset(
    {
        metrics.REQUESTS,
        metrics.GENERATED_TOKENS,
        metrics.EVALUATION_SCORE,
        metrics.EVALUATION_SAMPLES,
        metrics.REFUSAL_CHECKS,
        metrics.DRIFT,
        metrics.DRIFT_SAMPLES,
        _JUDGED_SUM,
        _JUDGED_COUNT,
        PROCESS_START,
        _LATENCY,
        _FIRST_TOKEN,
        _SECONDS,
    }
)
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,?)')
_LABELS_END: Final = re.compile(r"[ \t]*\}")
_ESCAPE: Final = re.compile(r"\\(.)")


class ExpositionError(ValueError):
    """The text is no exposition of an inference server; the message says where."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Upper bounds of the buckets in seconds, ascending to infinity; empty: no such histogram."""

    latency: tuple[float, ...] = ()
    first_token: tuple[float, ...] = ()


REQUESTS_AT: Final = 0
ERRORS_AT: Final = 1
TOKENS_AT: Final = 2
SECONDS_AT: Final = 3
JUDGED_SUM_AT: Final = 4
JUDGED_COUNT_AT: Final = 5
CHECKED_AT: Final = 6
REFUSED_AT: Final = 7
BUCKETS_AT: Final = 8
"""Where the counters are in `Exposition.counters`; the buckets of both histograms follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposition:
    """One look at one pod."""

    layout: Layout
    counters: "array[float]" = field(repr=False)
    """Finished requests without 4xx, those with 5xx, tokens, seconds of requests, sum and number of the
    judgements, answers checked for refusals and those that refuse, then cumulative buckets."""
    score: float | None = None
    cases: float = 0.0
    drift: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By signal: index and samples."""
    process_started_at: float | None = None
    """By the node's own clock, which may be wrong."""


def parse_exposition(text: str) -> Exposition:
    """What the text says. Raises ExpositionError."""
    plain: dict[str, float] = defaultdict(float)
    buckets: dict[str, dict[float, float]] = {_LATENCY: defaultdict(float), _FIRST_TOKEN: defaultdict(float)}
    requests = errors = checked = refused = 0.0
    drift: dict[str, dict[str, float]] = {metrics.DRIFT: {}, metrics.DRIFT_SAMPLES: {}}
    seen: set[str] = set()
    if text.count("\n") > MAX_TEXT_LINES:
        raise ExpositionError(f"more than {MAX_TEXT_LINES} lines")
    lines = 0
    for number, line in enumerate(text.split("\n"), start=1):
        match = _NAME.match(line)
        name = match[0] if match else ""
        if name not in _NAMES:
            continue
        lines += 1
        if lines > MAX_LINES:
            raise ExpositionError(f"more than {MAX_LINES} series")
        if len(line) > MAX_LINE_LETTERS:
            raise ExpositionError(f"line {number} is longer than {MAX_LINE_LETTERS} letters")
        labels, value = _parse_rest(line[len(name) :], number)
        seen.add(name)
        if name == metrics.REQUESTS:
            code = _need(labels, "code", number)
            if not (len(code) == 3 and code.startswith("4")):
                requests += value
                errors += value if code.startswith("5") else 0.0
        elif name == metrics.REFUSAL_CHECKS:
            checked += value
            refused += value if _need(labels, "refused", number) == "true" else 0.0
        elif name in drift:
            signal = _need(labels, "signal", number)
            if signal in metrics.DRIFT_SIGNALS:
                drift[name][signal] = value
        elif name in buckets:
            bound = _number(_need(labels, "le", number), number)
            buckets[name][bound] += value
            if len(buckets[name]) > MAX_BUCKETS:
                raise ExpositionError(f"{name} has more than {MAX_BUCKETS} buckets")
        else:
            plain[name] += value
    if not seen - {PROCESS_START}:
        raise ExpositionError("no series of an inference server; does runtime.image export them?")
    layout = Layout(_bounds(_LATENCY, buckets[_LATENCY]), _bounds(_FIRST_TOKEN, buckets[_FIRST_TOKEN]))
    judged = (plain[_JUDGED_SUM], plain[_JUDGED_COUNT])
    counters = array(
        "d",
        (requests, errors, plain[metrics.GENERATED_TOKENS], plain[_SECONDS], *judged, checked, refused),
    )
    counters.extend(buckets[_LATENCY][bound] for bound in layout.latency)
    counters.extend(buckets[_FIRST_TOKEN][bound] for bound in layout.first_token)
    return Exposition(
        layout=layout,
        counters=counters,
        score=plain[metrics.EVALUATION_SCORE] if metrics.EVALUATION_SCORE in seen else None,
        cases=plain[metrics.EVALUATION_SAMPLES],
        drift={
            signal: (index, drift[metrics.DRIFT_SAMPLES].get(signal, 0.0))
            for signal, index in drift[metrics.DRIFT].items()
        },
        process_started_at=plain[PROCESS_START] if PROCESS_START in seen else None,
    )


def _parse_rest(rest: str, number: int) -> tuple[Mapping[str, str], float]:
    """Labels and value after the name, from left to right: one pattern for all could be made to backtrack."""
    labels: dict[str, str] = {}
    rest = rest.strip()
    if rest.startswith("{"):
        at, more = 1, True
        while more and (label := _LABEL.match(rest, at)):
            labels[label[1]] = _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], label[2])
            at, more = label.end(), bool(label[3])
        end = _LABELS_END.match(rest, at)
        if end is None:
            raise ExpositionError(f"line {number} has malformed labels")
        rest = rest[end.end() :]
    words = rest.split()
    if len(words) not in (1, 2):
        raise ExpositionError(f"line {number} is no sample")
    value = _number(words[0], number)
    if not math.isfinite(value) or value < 0:
        raise ExpositionError(f"line {number} has the value {words[0][:40]}, which is no count")
    return labels, value


def _number(text: str, number: int) -> float:
    try:
        # Python reads "1_0" as a number; Prometheus does not.
        if "_" not in text:
            value = float(text)
            if not math.isnan(value):
                return value
    except ValueError:
        pass
    raise ExpositionError(f"line {number} has {text[:40]!r} for a number")


def _need(labels: Mapping[str, str], name: str, number: int) -> str:
    if name not in labels:
        raise ExpositionError(f"line {number} has no label {name}")
    return labels[name]


def _bounds(name: str, buckets: Mapping[float, float]) -> tuple[float, ...]:
    if buckets and math.inf not in buckets:
        raise ExpositionError(f"{name} has no bucket +Inf")
    return tuple(sorted(buckets))
