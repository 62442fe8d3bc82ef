# SPDX-License-Identifier: Apache-2.0
"""Verdicts: of each measurement by the gates, of each variant, and of the version.

A variant is offered for the device classes on which it passed. A version is accepted when every variant has
been judged and each device class that any recipe names (for recipes that name none: the node that they were
measured on) has a variant that passed. A variant that did not is left out.
"""

from dataclasses import dataclass

from slmops.api import SLMModelSpec
from slmops.api.slmmodel import Recipe
from slmops.api.slmmodel_status import (
    MESSAGE_LIMIT,
    ModelEvaluationStatus,
    ModelVariantStatus,
    ModelVersionStatus,
)
from slmops.planning import times
from slmops.planning.slmmodel.gates import (
    Yardstick,
    find_failure,
    find_size_failure,
    gates_of,
    value_of,
)
from slmops.planning.slmmodel.job_state import Failure
from slmops.planning.slmmodel.measure import profiles_of

JUDGED = frozenset({"Accepted", "Rejected", "Failed"})


def judge_variants(spec: SLMModelSpec, variants: list[ModelVariantStatus]) -> list[ModelVariantStatus]:
    """All variants with the verdicts that follow from what is known now."""
    recipes = {recipe.name: recipe for recipe in spec.recipes}
    return [_judge(spec, recipes[variant.name], variant, variants) for variant in variants]


def _judge(
    spec: SLMModelSpec, recipe: Recipe, variant: ModelVariantStatus, variants: list[ModelVariantStatus]
) -> ModelVariantStatus:
    if not variant.digest:
        return variant.model_copy(update={"verdict": "Error" if variant.step == "Failed" else ""})
    gates = gates_of(spec, recipe)
    if spec.evaluation is None:
        failure = find_size_failure(gates, variant.size_bytes)
        return _verdict(variant, "Rejected" if failure else "Accepted", failure)
    metric, evaluations = spec.evaluation.metric, []
    for entry in variant.evaluations:
        if not entry.measured_at:
            evaluations.append(entry)
            continue
        yardstick = _yardstick(spec, entry.profile, variants) if gates.max_quality_loss else Yardstick()
        if yardstick is None:
            evaluations.append(entry.model_copy(update={"verdict": "", "reason": "", "message": ""}))
            continue
        failure = find_failure(
            gates, entry, size_bytes=variant.size_bytes, metric=metric, yardstick=yardstick
        )
        evaluations.append(
            entry.model_copy(
                update={
                    "verdict": "Fail" if failure else "Pass",
                    "reason": failure.reason if failure else "",
                    "message": failure.message[:MESSAGE_LIMIT] if failure else "",
                }
            )
        )
    variant = variant.model_copy(update={"evaluations": evaluations})
    waiting = next((entry for entry in evaluations if not entry.verdict), None)
    if waiting is not None or not evaluations:
        reason = waiting.reason if waiting else ""
        message = _on(waiting) if waiting and waiting.reason else ""
        return variant.model_copy(
            update={"step": "Evaluating", "verdict": "", "reason": reason, "message": message}
        )
    bad = next((entry for entry in evaluations if entry.verdict != "Pass"), None)
    failure = Failure(reason=bad.reason, message=_on(bad)) if bad else None
    if any(entry.verdict == "Pass" for entry in evaluations):
        return _verdict(variant, "Accepted", failure)
    broken = all(entry.verdict == "Error" for entry in evaluations)
    return _verdict(variant, "Failed" if broken else "Rejected", failure)


def _on(entry: ModelEvaluationStatus) -> str:
    place = f"on {entry.profile}: " if entry.profile else ""
    return f"{place}{entry.message}"[:MESSAGE_LIMIT]


def _verdict(variant: ModelVariantStatus, step: str, failure: Failure | None) -> ModelVariantStatus:
    verdict = {"Accepted": "Pass", "Rejected": "Fail", "Failed": "Error"}[step]
    return variant.model_copy(
        update={
            "step": step,
            "verdict": verdict,
            "progress": "",
            "reason": failure.reason if failure else "",
            "message": failure.message[:MESSAGE_LIMIT] if failure else "",
        }
    )


def _yardstick(spec: SLMModelSpec, profile: str, variants: list[ModelVariantStatus]) -> Yardstick | None:
    """The reference's value on the same device class, else on the first one where it was measured; None
    while that is open."""
    assert spec.evaluation is not None
    name = spec.evaluation.reference or spec.recipes[0].name
    reference = next((variant for variant in variants if variant.name == name), None)
    if reference is None or (reference.step == "Failed" and not reference.digest):
        return Yardstick(wanting=f"the reference {name} failed, so the quality loss cannot be told")
    if not reference.evaluations:
        return None
    entries = sorted(reference.evaluations, key=lambda entry: entry.profile != profile)
    for entry in entries:
        if entry.verdict == "Error":
            continue
        if not entry.measured_at:
            return None
        value = value_of(entry, spec.evaluation.metric)
        if value is not None:
            return Yardstick(value=value)
    return Yardstick(
        wanting=f"{spec.evaluation.metric} of the reference {name} was not measured, so the quality loss "
        "cannot be told"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    accepted: bool
    reason: str
    message: str = ""


def judge_version(
    spec: SLMModelSpec, version: ModelVersionStatus, *, accepted_by_hand: str, now: float
) -> ModelVersionStatus:
    """The version with its decision; one that is accepted stays so."""
    if version.accepted:
        return version
    decision = _decide(spec, version, accepted_by_hand)
    return version.model_copy(
        update={
            "accepted": decision.accepted,
            "accepted_at": times.to_text(now) if decision.accepted else None,
            "reason": decision.reason,
            "message": decision.message[:MESSAGE_LIMIT],
        }
    )


def _decide(spec: SLMModelSpec, version: ModelVersionStatus, accepted_by_hand: str) -> _Decision:
    open_variants = [variant for variant in version.variants if variant.step not in JUDGED]
    if open_variants:
        done = len(version.variants) - len(open_variants)
        first = open_variants[0]
        what = f"{first.name} {first.step}" + (f" ({first.reason}: {first.message})" if first.reason else "")
        text = f"{done} of {len(version.variants)} variants are judged; {what}"
        if spec.paused:
            return _Decision(accepted=False, reason="Paused", message=f"spec.paused is true; {text}")
        return _Decision(accepted=False, reason="InProgress", message=text)
    for profile in _asked(spec):
        if not any(passes(variant, profile) for variant in version.variants):
            return _refuse(version, profile)
    if spec.policy == "Manual" and accepted_by_hand != version.version:
        return _Decision(
            accepted=False,
            reason="AwaitingAcceptance",
            message="every gate is passed; accept it with the annotation "
            f"slmops.dev/accept={version.version}",
        )
    left_out = [v.name for v in version.variants if v.step != "Accepted"]
    message = f"left out: {', '.join(left_out)}" if left_out else ""
    return _Decision(accepted=True, reason="VersionAccepted", message=message)


def _asked(spec: SLMModelSpec) -> list[str]:
    """Device classes that need a variant, in order of first mention."""
    return list(dict.fromkeys(profile for recipe in spec.recipes for profile in profiles_of(recipe)))


def passes(variant: ModelVariantStatus, profile: str) -> bool:
    """Whether a variant is offered for a device class."""
    if variant.step != "Accepted":
        return False
    if not variant.evaluations:
        return profile in (variant.profiles or [""])
    return any(entry.profile == profile and entry.verdict == "Pass" for entry in variant.evaluations)


def _refuse(version: ModelVersionStatus, profile: str) -> _Decision:
    """Why no variant passed on that class: the first gate that one failed, else what went wrong."""
    place = f" on {profile}" if profile else ""
    found: list[tuple[str, str, str]] = []
    for variant in version.variants:
        entry = next((e for e in variant.evaluations if e.profile == profile), None)
        if entry is not None and entry.verdict != "Pass":
            found.append((variant.name, entry.reason, entry.message))
        elif entry is None and profile in (variant.profiles or [""]) and variant.step != "Accepted":
            found.append((variant.name, variant.reason, variant.message))
    gate = next((entry for entry in found if entry[1] in ("GateFailed", "NotMeasured", "NoReference")), None)
    name, reason, message = gate or found[0]
    if gate is not None:
        return _Decision(accepted=False, reason="GateFailed", message=f"{name}{place}: {message}")
    return _Decision(accepted=False, reason="VariantFailed", message=f"{name}{place}: {reason}: {message}")
