# SPDX-License-Identifier: Apache-2.0
"""Who measures for a deployment: a Prometheus where one is named, else the operator itself."""

from typing import Final, Literal

from slmops.api.analysis import Analysis
from slmops.api.base import duration_seconds
from slmops.api.status import RolloutStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import ProviderSettings
from slmops.planning.decision import ACTIVE, Decision
from slmops.planning.metric_rules import is_read_off_pods

MAX_TIMEOUT_SECONDS: Final = 15.0


def choose_provider(analysis: Analysis, config: OperatorConfig) -> Literal["Prometheus", "Direct"]:
    """`provider: Prometheus` without any Prometheus counts as unset: earlier releases wrote it into every
    object, and a rollout that nobody can judge would hold for ever."""
    if analysis.provider == "Direct":
        return "Direct"
    return "Prometheus" if analysis.prometheus.url or config.prometheus_url else "Direct"


def provider_settings(analysis: Analysis, config: OperatorConfig, *, namespace: str) -> ProviderSettings:
    """Whom to ask, and as whom."""
    if choose_provider(analysis, config) == "Direct":
        return ProviderSettings(kind="Direct", namespace=namespace)
    prometheus = analysis.prometheus
    return ProviderSettings(
        kind="Prometheus",
        namespace=namespace,
        url=prometheus.url or "",
        secret=prometheus.secret_ref.name if prometheus.secret_ref else "",
        tenant=prometheus.tenant or "",
        timeout_seconds=min(duration_seconds(prometheus.timeout), MAX_TIMEOUT_SECONDS),
    )


def with_judge(decision: Decision, analysis: Analysis, config: OperatorConfig) -> RolloutStatus | None:
    """The decision's rollout; one that is being measured with who does it, unset when all is read off the
    pods."""
    rollout = decision.rollout
    if rollout is None or rollout.step not in ACTIVE or not decision.measures:
        return rollout
    asks = any(not is_read_off_pods(metric) for metric in analysis.metrics)
    judge = choose_provider(analysis, config) if asks else None
    return rollout if rollout.judged_by == judge else rollout.model_copy(update={"judged_by": judge})
