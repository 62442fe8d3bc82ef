# SPDX-License-Identifier: Apache-2.0
"""Judges a measurement: one metric, the new revision against bounds and against the stable revision.

Three things are kept apart: measuring (a provider), assessing (here) and deciding (judge, rollout).
No value never passes and never fails; an error of the provider is neither.

Every device class (variant) is judged for itself, the new revision on it against the stable one on it:
what is slow is then the revision, and not the device. A class without a sample of the new revision is
not judged.

Two tests. Threshold: beyond its bound, with enough samples on each side, is a failure. Sequential: a
failure is what the counts since the wave's flip prove (`evidence`), however few they are; beyond the
bound without proof is Inconclusive, so a metric passes only with enough samples, a value within its
bound and no proof against it.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from slmops.api.analysis import Metric
from slmops.api.status import Measurement, MetricState
from slmops.model.observed import NO_SAMPLE, Preset, Reading, Sample, Samples
from slmops.planning import times
from slmops.planning.evidence import (
    Counts,
    Evidence,
    Histogram,
    above_bound,
    compare_latency,
    compare_rates,
    latency_above_bound,
)
from slmops.planning.metric_rules import (
    asks_each_side,
    compares,
    is_higher_better,
    is_sequential,
    margin_of,
    min_samples,
    preset_of,
)

_ROUNDING: Final = 1e-9
"""Keeps equal decimals from failing through binary rounding."""
_LEAST_BOUND_SECONDS: Final = 1e-9


class Verdict(StrEnum):
    """What a measurement says about the new revision."""

    PASS = "Pass"
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"
    NO_DATA = "NoData"
    PROVIDER_ERROR = "ProviderError"
    TERMINATED = "Terminated"
    """Still being measured when the wave failed on another metric."""


_ORDER: Final = (Verdict.FAIL, Verdict.NO_DATA, Verdict.INCONCLUSIVE, Verdict.PASS)
"""The verdict of the classes that comes first here is the one of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Verdict on one reading, why, and what it was made from."""

    verdict: Verdict
    message: str
    variant: str = ""
    """Class that decided."""
    canary: Sample = NO_SAMPLE
    stable: Sample = NO_SAMPLE
    p_value: float | None = None
    """Of a Sequential test."""


def assess_reading(
    metric: Metric, reading: Reading, *, required_log_e: float, kept: Samples | None = None
) -> Assessment:
    """Verdict on one reading.

    `kept` is the baseline: it stands in for a stable class that has too few samples now.
    `required_log_e` is the evidence from which a Sequential test fails.
    """
    if reading.error:
        return Assessment(verdict=Verdict.PROVIDER_ERROR, message=reading.error)
    live, kept = (reading.stable, kept or {}) if asks_each_side(metric) else ({}, {})
    classes = sorted(v for v, s in reading.canary.items() if s.samples > 0 or _is_known(s))
    if not classes:
        return Assessment(verdict=Verdict.NO_DATA, message="no data from the new revision")
    found = [
        _assess_class(
            metric,
            _Class(
                variant=variant,
                canary=reading.canary[variant],
                live=live.get(variant, NO_SAMPLE),
                kept=kept.get(variant, NO_SAMPLE),
                has_stable=not (live or kept) or variant in live or variant in kept,
            ),
            required_log_e,
        )
        for variant in classes
    ]
    first = min(found, key=lambda a: (_ORDER.index(a.verdict), _goodness(metric, a)))
    if len({*reading.canary, *live, *kept}) > 1:
        return replace(first, message=f"{first.variant}: {first.message}")
    return first


def _goodness(metric: Metric, assessment: Assessment) -> float:
    value = assessment.canary.value
    if value is None:
        return 0.0
    return value if is_higher_better(metric) else -value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Both sides of one device class."""

    variant: str
    canary: Sample
    live: Sample
    """What the stable nodes have now."""
    kept: Sample
    """What was kept of them."""
    has_stable: bool
    """False when there is a stable side, but none of this class."""

    def stable(self, need: int) -> Sample:
        """The better known of the two; what is measured at the same time is better known."""
        usable = _is_known(self.live)
        if usable and (self.live.samples >= need or self.live.samples >= self.kept.samples):
            return self.live
        return self.kept if _is_known(self.kept) else self.live


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """One bound looked at."""

    beyond: bool
    """The value is beyond it."""
    proven: bool
    """Enough to blame the new revision."""
    text: str


def _assess_class(metric: Metric, sides: _Class, required_log_e: float) -> Assessment:
    need = min_samples(metric)
    canary, stable = sides.canary, sides.stable(need)
    result = Assessment(
        verdict=Verdict.PASS, message="within bounds", variant=sides.variant, canary=canary, stable=stable
    )
    if canary.value is None or not math.isfinite(canary.value):
        return replace(result, verdict=Verdict.NO_DATA, message="no data from the new revision")
    proofs: list[Evidence] = []
    if is_sequential(metric):
        try:
            proofs = [_prove_bound(metric, canary), _prove_worse(metric, canary, stable)]
        except ValueError as error:
            return replace(result, verdict=Verdict.INCONCLUSIVE, message=str(error))
        result = replace(result, p_value=min(proof.p_value for proof in proofs))
    proven = [proof.log_e >= required_log_e for proof in proofs]

    enough, stable_enough = canary.samples >= need, _is_known(stable) and stable.samples >= need
    bound = _broken_bound(metric, canary.value)
    also = stable_enough and bool(_broken_bound(metric, stable.value or 0.0))
    if (proven[0] if proofs else bool(bound) and enough) and not also:
        text = bound or f"requests above max {metric.max} are more than {_number(canary.value)} tells"
        return replace(result, verdict=Verdict.FAIL, message=text + _proof_text(result))
    compared, worse, shared = "", False, False
    if compares(metric) and stable.value is not None and _is_known(stable):
        compared = _worse_text(metric, canary.value, stable.value)
        worse = _is_worse(metric, canary.value, stable.value)
        shared = stable is not sides.live and _is_worse(metric, sides.live.value, stable.value)
        if (proven[1] if proofs else worse and enough and stable_enough) and not shared:
            return replace(result, verdict=Verdict.FAIL, message=compared + _proof_text(result))

    result = replace(result, verdict=Verdict.INCONCLUSIVE)
    if not enough:
        return replace(result, message=f"{canary.samples} of {need} samples")
    if bound:
        why = f"the stable revision as well ({value_text(stable.value)})" if also else "not proven"
        return replace(result, message=f"{bound}; {why}")
    if not compares(metric):
        return replace(result, verdict=Verdict.PASS)
    if not sides.has_stable:
        message = f"no stable node of variant {sides.variant} to compare with; give the metric max or min"
        return replace(result, message=message)
    if not _is_known(stable):
        message = "no data from the stable revision to compare with"
        return replace(result, verdict=Verdict.NO_DATA, message=message)
    if not stable_enough:
        return replace(result, message=f"{stable.samples} of {need} samples from the stable revision")
    if worse:
        why = (
            f"the stable nodes got worse as well ({value_text(sides.live.value)})" if shared else "not proven"
        )
        return replace(result, message=f"{compared}; {why}")
    return replace(result, verdict=Verdict.PASS, message=compared)


def _is_known(sample: Sample) -> bool:
    return sample.value is not None and math.isfinite(sample.value)


def _broken_bound(metric: Metric, value: float) -> str:
    if metric.max is not None and value > float(metric.max):
        return f"{_number(value)} is above max {metric.max}"
    if metric.min is not None and value < float(metric.min):
        return f"{_number(value)} is below min {metric.min}"
    return ""


def _is_worse(metric: Metric, value: float | None, stable: float) -> bool:
    if value is None:
        return False
    worse_by = stable - value if is_higher_better(metric) else value - stable
    return worse_by > margin_of(metric).width(stable) + _ROUNDING


def _worse_text(metric: Metric, value: float, stable: float) -> str:
    return f"{_number(value)} against {_number(stable)} on stable, {metric.max_degradation} worse is allowed"


def _proof_text(assessment: Assessment) -> str:
    return "" if assessment.p_value is None else f" (p {assessment.p_value:.2g})"


_NO_EVIDENCE: Final = Evidence(log_e=0.0, canary=None, stable=None, limit=None)


def _prove_bound(metric: Metric, canary: Sample) -> Evidence:
    """Evidence that the new revision is above `max`. ValueError when there are no counts for it."""
    if metric.max is None:
        return _NO_EVIDENCE
    if preset_of(metric) is Preset.ERROR_RATE:
        return above_bound(_counts(canary), bound=min(1.0, float(metric.max)))
    seconds = max(float(metric.max), _LEAST_BOUND_SECONDS)
    return latency_above_bound(_histogram(canary, "new"), bound_seconds=seconds)


def _prove_worse(metric: Metric, canary: Sample, stable: Sample) -> Evidence:
    """Evidence that it is worse than the stable one by more than is allowed."""
    if not compares(metric) or not _is_known(stable):
        return _NO_EVIDENCE
    margin = margin_of(metric)
    if preset_of(metric) is Preset.ERROR_RATE:
        return compare_rates(
            _counts(canary), _counts(stable), allowed=margin.allowed, relative=margin.relative
        )
    return compare_latency(
        _histogram(canary, "new"),
        _histogram(stable, "stable"),
        allowed_seconds=margin.allowed,
        relative=margin.relative,
    )


def _counts(sample: Sample) -> Counts:
    # The share and the samples say the same as the number of events.
    events = sample.events or (sample.value or 0.0) * sample.samples
    return Counts.cut(events=events, total=sample.samples)


def _histogram(sample: Sample, side: str) -> Histogram:
    if not sample.buckets:
        raise ValueError(f"no histogram of the {side} revision for a Sequential test; use test: Threshold")
    return Histogram.cut(sample.buckets)


def _number(value: float) -> str:
    return f"{value:.4g}"


def value_text(value: float | None) -> str | None:
    """A value as status shows it."""
    return None if value is None or not math.isfinite(value) else _number(value)


def fold_assessment(
    metric: Metric, state: MetricState | None, found: Assessment, *, wave: str, at: float
) -> tuple[MetricState, Measurement]:
    """New running counts of the metric, and the measurement for the history.

    Rule: passes and failures count in a row. A Pass sets failures back, a Fail passes; Inconclusive sets
    passes back, for the value was looked at; NoData and ProviderError leave both as they are, so an
    outage neither promotes nor rolls back. The other counts are each set back by any other verdict.
    """
    before = state or MetricState(name=metric.name)
    verdict = found.verdict
    passes, failures = before.consecutive_passes, before.consecutive_failures
    if verdict is Verdict.PASS:
        passes, failures = passes + 1, 0
    elif verdict is Verdict.FAIL:
        passes, failures = 0, failures + 1
    elif verdict is Verdict.INCONCLUSIVE:
        passes = 0
    return (
        MetricState(
            name=metric.name,
            verdict=verdict,
            consecutive_passes=passes,
            consecutive_failures=failures,
            consecutive_inconclusive=_in_a_row(
                verdict, Verdict.INCONCLUSIVE, before.consecutive_inconclusive
            ),
            consecutive_no_data=_in_a_row(verdict, Verdict.NO_DATA, before.consecutive_no_data),
            consecutive_errors=_in_a_row(verdict, Verdict.PROVIDER_ERROR, before.consecutive_errors),
            measured_at=times.to_text(at),
        ),
        Measurement(
            metric=metric.name,
            wave=wave,
            at=times.to_text(at),
            verdict=verdict,
            canary=value_text(found.canary.value),
            stable=value_text(found.stable.value),
            canary_samples=found.canary.samples,
            stable_samples=found.stable.samples,
            message=found.message[:512],
            variant=found.variant,
            p_value=None if found.p_value is None else f"{found.p_value:.3g}",
            dry_run=metric.dry_run,
        ),
    )


def _in_a_row(verdict: Verdict, counted: Verdict, before: int) -> int:
    return before + 1 if verdict is counted else 0
