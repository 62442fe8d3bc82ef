# SPDX-License-Identifier: Apache-2.0
"""What changed between two statuses of an SLMModel that a person wants to hear of: one Event each."""

from typing import Final

from slmops.api.slmmodel_status import ModelVariantStatus, ModelVersionStatus, SLMModelStatus
from slmops.model.plan import Transition
from slmops.planning.slmmodel.versions import SUPERSEDED

_TOLD: Final = ("Accepted", "SourceResolved")
_VERSION: Final = frozenset({"GateFailed", "VariantFailed", "AwaitingAcceptance", SUPERSEDED})
_STEPS: Final[dict[str, str]] = {
    "Accepted": "VariantAccepted",
    "Rejected": "VariantRejected",
    "Failed": "VariantFailed",
}


def transitions_between(old: SLMModelStatus, new: SLMModelStatus) -> tuple[Transition, ...]:
    """In the order in which a reader expects them; empty when nothing turned."""
    return (*_conditions(old, new), *_versions(old, new))


def _conditions(old: SLMModelStatus, new: SLMModelStatus) -> list[Transition]:
    before = {c.type: (c.status, c.reason) for c in old.conditions}
    result = []
    for condition in new.conditions:
        known = before.get(condition.type)
        if condition.type not in _TOLD or known == (condition.status, condition.reason):
            continue
        bad = condition.status == "False"
        if bad or (known is not None and known[0] == "False"):
            message = f"{condition.type}: {condition.message}"
            result.append(
                Transition(kind="Warning" if bad else "Normal", reason=condition.reason, message=message)
            )
    return result


def _versions(old: SLMModelStatus, new: SLMModelStatus) -> list[Transition]:
    before = {version.version: version for version in old.versions}
    result: list[Transition] = []
    for version in reversed(new.versions):
        known = before.get(version.version)
        if known is None:
            message = f"version {version.version} of {version.reference}"
            result.append(Transition(kind="Normal", reason="VersionFound", message=message))
        result += _variants(version, known)
        if version.accepted and (known is None or not known.accepted):
            message = f"version {version.version} is offered"
            if version.message:
                message += f"; {version.message}"
            result.append(Transition(kind="Normal", reason="VersionAccepted", message=message))
        elif version.reason in _VERSION and (known is None or known.reason != version.reason):
            bad = version.reason in ("GateFailed", "VariantFailed")
            result.append(
                Transition(
                    kind="Warning" if bad else "Normal",
                    reason=version.reason,
                    message=f"version {version.version}: {version.message}",
                )
            )
    return result


def _variants(version: ModelVersionStatus, known: ModelVersionStatus | None) -> list[Transition]:
    before = {variant.name: variant for variant in known.variants} if known else {}
    result: list[Transition] = []
    for variant in version.variants:
        old = before.get(variant.name)
        what = f"version {version.version}, variant {variant.name}"
        if variant.digest and old is not None and not old.digest:
            message = f"{what}: {variant.digest}, {variant.size_bytes} bytes"
            result.append(Transition(kind="Normal", reason="VariantPublished", message=message))
        turned = old is None or old.step != variant.step
        if turned and variant.step in _STEPS and variant.reason != SUPERSEDED:
            text = _text(variant)
            result.append(
                Transition(
                    kind="Normal" if variant.step == "Accepted" else "Warning",
                    reason=_STEPS[variant.step],
                    message=f"{what}{text}",
                )
            )
        elif variant.reason and (old is None or old.reason != variant.reason) and not turned:
            result.append(
                Transition(kind="Warning", reason=variant.reason, message=f"{what}{_text(variant)}")
            )
    return result


def _text(variant: ModelVariantStatus) -> str:
    return f": {variant.reason}: {variant.message}" if variant.reason else ""
