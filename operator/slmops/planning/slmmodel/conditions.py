# SPDX-License-Identifier: Apache-2.0
"""Conditions of an SLMModel."""

from collections.abc import Mapping, Sequence

from slmops.api import SLMModelSpec
from slmops.api.slmmodel_status import ModelConditionType, ModelVariantStatus, ModelVersionStatus
from slmops.model.observed import ResolveFailure
from slmops.planning.conditions import Says
from slmops.planning.slmmodel.measure import Dataset

Conditions = Mapping[ModelConditionType, Says]


def say_all(
    spec: SLMModelSpec,
    versions: Sequence[ModelVersionStatus],
    *,
    failure: ResolveFailure | None,
    source_known: bool,
    dataset: Dataset,
) -> dict[ModelConditionType, Says]:
    """Every condition; `failure` is that of the latest question about the source."""
    newest = versions[0] if versions else None
    return {
        ModelConditionType.ACCEPTED: Says(status="True", reason="Accepted", message="the spec makes sense"),
        ModelConditionType.SOURCE_RESOLVED: _resolved(newest, failure, source_known, dataset),
        ModelConditionType.OPTIMISED: _optimised(newest),
        ModelConditionType.EVALUATED: _evaluated(spec, newest),
        ModelConditionType.READY: say_ready(versions),
    }


def _resolved(
    newest: ModelVersionStatus | None, failure: ResolveFailure | None, source_known: bool, dataset: Dataset
) -> Says:
    if failure is not None:
        return Says(status="False", reason=failure.reason.value, message=failure.message)
    if dataset.failure is not None:
        return Says(status="False", reason=dataset.failure.reason, message=dataset.failure.message)
    if not source_known:
        return Says(status="Unknown", reason="Resolving", message="the source is asked which files there are")
    what = f"{newest.reference} with {newest.digest}" if newest else "the files are known"
    return Says(status="True", reason="Resolved", message=what)


def _optimised(newest: ModelVersionStatus | None) -> Says:
    if newest is None:
        return Says(status="Unknown", reason="NoVersion", message="there is no version yet")
    lacking = [variant for variant in newest.variants if not variant.digest]
    if not lacking:
        message = f"version {newest.version}: the files of all variants exist"
        return Says(status="True", reason="Published", message=message)
    stuck = next((v for v in lacking if v.step == "Failed"), None) or next(
        (v for v in lacking if v.reason), None
    )
    if stuck is not None and stuck.reason:
        return Says(status="False", reason=stuck.reason, message=_about(newest, stuck))
    first = lacking[0]
    done = len(newest.variants) - len(lacking)
    return Says(
        status="Unknown",
        reason=first.step if first.step in ("Optimising", "Publishing") else "Optimising",
        message=f"version {newest.version}: {done} of {len(newest.variants)} variants have their files; "
        f"{first.name} {first.step} {first.progress}".rstrip(),
    )


def _evaluated(spec: SLMModelSpec, newest: ModelVersionStatus | None) -> Says:
    if newest is None:
        return Says(status="Unknown", reason="NoVersion", message="there is no version yet")
    made = [variant for variant in newest.variants if variant.digest]
    bad = next((v for v in made if v.step in ("Failed", "Rejected")), None) or next(
        (v for v in made if v.reason), None
    )
    if bad is not None and bad.reason:
        return Says(status="False", reason=bad.reason, message=_about(newest, bad))
    if spec.evaluation is None:
        return Says(
            status="True", reason="NotAsked", message="spec.evaluation is not set: nothing is measured"
        )
    if not made:
        return Says(
            status="Unknown", reason="Optimising", message=f"version {newest.version}: no variant exists yet"
        )
    passed = [variant.name for variant in newest.variants if variant.step == "Accepted"]
    count = f"version {newest.version}: {len(passed)} of {len(newest.variants)} variants passed"
    if len(passed) < len(newest.variants):
        return Says(status="Unknown", reason="Evaluating", message=count)
    return Says(status="True", reason="Passed", message=count)


def say_ready(versions: Sequence[ModelVersionStatus]) -> Says:
    """Whether a version is offered."""
    if not versions:
        return Says(status="False", reason="NoVersion", message="there is no version yet")
    newest = versions[0]
    about = f"version {newest.version}" + (f": {newest.message}" if newest.message else "")
    if newest.accepted:
        return Says(status="True", reason="VersionAccepted", message=f"{about}; it is offered")
    offered = next((version for version in versions if version.accepted), None)
    if offered is not None:
        message = f"version {offered.version} is offered; {about} ({newest.reason})"
        return Says(status="True", reason="EarlierVersion", message=message)
    return Says(status="False", reason=newest.reason or "InProgress", message=about)


def _about(version: ModelVersionStatus, variant: ModelVariantStatus) -> str:
    return f"version {version.version}, variant {variant.name}: {variant.message or variant.reason}"
