# SPDX-License-Identifier: Apache-2.0
"""PromQL for each preset: pure functions from a question to query texts.

What counts as a request for the error rate: every finished one but those with a 4xx code. Those are
the client's doing (400 malformed, 429 more than the queue takes, 499 the client left) and say nothing
about whether the new revision answers rightly; counting them as successes would dilute errors.

`increase` does not see what a counter had before its first scrape. Both sides of every comparison lose
the same, at most one scrape interval per pod, and the evidence floor counts what is left.
"""

import math
from dataclasses import dataclass

from slmops.model.observed import MetricQuery, Preset
from slmwire import metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Instant queries that answer one MetricQuery; each gives one series without labels, or none.

    `samples` gives the evidence behind the value. `value` gives the value, or, when `share` is set,
    the part of the samples whose share the value is: no series at all then means none of them.
    """

    value: str
    samples: str
    share: bool = False


def build_questions(query: MetricQuery) -> Questions:
    """Queries for one preset over the pods of one revision."""
    window = f"[{max(1, math.ceil(query.window_seconds))}s]"
    match query.preset:
        case Preset.ERROR_RATE:
            counted = _select(metrics.REQUESTS, query, 'code!~"4.."')
            wrong = _select(metrics.REQUESTS, query, 'code=~"5.."')
            return Questions(
                value=f"sum(increase({wrong}{window}))",
                samples=f"sum(increase({counted}{window}))",
                share=True,
            )
        case Preset.LATENCY_P95:
            return _quantile(metrics.REQUEST_SECONDS, query, window)
        case Preset.TTFT_P95:
            return _quantile(metrics.TTFT_SECONDS, query, window)
        case Preset.EVALUATION_SCORE:
            score = _select(metrics.EVALUATION_SCORE, query)
            cases = _select(metrics.EVALUATION_SAMPLES, query)
            # Both gauges come from one process with equal labels, so they match one to one.
            return Questions(value=f"sum({score} * {cases}) / sum({cases})", samples=f"sum({cases})")
    raise ValueError(f"no PromQL for {query.preset}")


def _quantile(histogram: str, query: MetricQuery, window: str) -> Questions:
    bucket = _select(f"{histogram}_bucket", query)
    count = _select(f"{histogram}_count", query)
    return Questions(
        value=f"histogram_quantile(0.95, sum by (le) (increase({bucket}{window})))",
        samples=f"sum(increase({count}{window}))",
    )


def _select(metric: str, query: MetricQuery, *extra: str) -> str:
    matchers = [
        f"{metrics.LABEL_NAMESPACE}={quote(query.namespace)}",
        f"{metrics.LABEL_DEPLOYMENT}={quote(query.deployment)}",
        f"{metrics.LABEL_REVISION}={quote(query.revision)}",
        *extra,
    ]
    return f"{metric}{{{','.join(matchers)}}}"


def quote(text: str) -> str:
    """A PromQL string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
