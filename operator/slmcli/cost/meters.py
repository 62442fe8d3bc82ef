# SPDX-License-Identifier: Apache-2.0
"""What a server has counted since it started, out of the text of its /metrics."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from slmcli.errors import UnreachableError
from slmwire import metrics

MAX_LINES: Final = 20_000
_SECONDS: Final = f"{metrics.REQUEST_SECONDS}_sum"
_NAMES: Final = (metrics.PROMPT_TOKENS, metrics.GENERATED_TOKENS, _SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Counters of one server since its start."""

    input_tokens: float
    output_tokens: float
    request_seconds: float
    """Durations of all finished requests added up; requests side by side count each."""


def parse_meter(text: str) -> Meter:
    """Read Prometheus's text format. UnreachableError when it is not that of an inference server."""
    if text.count("\n") > MAX_LINES:
        raise UnreachableError(f"/metrics has more than {MAX_LINES} lines")
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        name = next((n for n in _NAMES if line.startswith((f"{n}{{", f"{n} "))), None)
        if name is not None:
            found[name] += _value(line[len(name) :])
    if metrics.GENERATED_TOKENS not in found or metrics.PROMPT_TOKENS not in found:
        raise UnreachableError("/metrics has no tokens of an inference server; is runtime.image another one?")
    return Meter(
        input_tokens=found[metrics.PROMPT_TOKENS],
        output_tokens=found[metrics.GENERATED_TOKENS],
        request_seconds=found[_SECONDS],
    )


def _value(rest: str) -> float:
    # Whatever stands in labels, the value comes after their last brace.
    words = rest.rpartition("}")[2].split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise UnreachableError("/metrics has a counter that is no number")
    return value
