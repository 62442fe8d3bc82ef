# SPDX-License-Identifier: Apache-2.0
"""`spec.rollout.analysis`: how a wave is judged by measurements."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import (
    ApiModel,
    Decimal,
    DecimalOrPercent,
    Duration,
    Name,
    SecretName,
    cel,
    exactly_one_of,
    keyed,
    validations,
)

Query = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""PromQL with the variables `$selector`, `$canary`, `$stable` and `$window`."""
_AT_LEAST_A_SECOND: Final[dict[str, Any]] = validations(
    cel("duration(self) >= duration('1s')", "must be at least 1s")
)


class Metric(ApiModel):
    """One measurement that judges the new revision."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            exactly_one_of("preset", "query"),
            cel(
                "has(self.max) || has(self.min) || has(self.maxDegradation)",
                "set at least one of max, min, maxDegradation: a metric without a bound judges nothing",
            ),
            cel(
                "!has(self.min) || !has(self.max) || double(self.min) <= double(self.max)",
                "min is above max: no value could pass",
            ),
            cel(
                "!has(self.samplesQuery) || has(self.query)",
                "samplesQuery belongs to a query; a preset counts its samples itself",
            ),
            cel(
                "!has(self.test) || self.test != 'Sequential' || (has(self.preset) && self.preset in "
                "['ErrorRate', 'LatencyP95', 'TimeToFirstTokenP95'])",
                "test: Sequential needs the counts of ErrorRate, LatencyP95 or TimeToFirstTokenP95; use "
                "Threshold",
            ),
            cel(
                "!has(self.direction) || has(self.query)",
                "direction belongs to a query; a preset knows which way is better",
            ),
            cel(
                "!has(self.preset) || !(self.preset in ['Restarts', 'OOMKills']) || "
                "!has(self.maxDegradation)",
                "Restarts and OOMKills are counts per node; give them max, not maxDegradation",
            ),
        )
    )

    name: Name = Field(description="Name of the metric, shown in status.")
    preset: (
        Literal[
            "ErrorRate",
            "LatencyP95",
            "TimeToFirstTokenP95",
            "TokensPerSecond",
            "EvaluationScore",
            "Restarts",
            "OOMKills",
            "FeedbackScore",
            "RefusalRate",
            "Drift",
        ]
        | None
    ) = Field(
        default=None,
        description="ErrorRate: share of requests answered with 5xx. LatencyP95 and TimeToFirstTokenP95: "
        "seconds. TokensPerSecond: tokens generated per second of a request. EvaluationScore: share of the "
        "golden set answered as expected. Restarts and OOMKills: of the serving containers since they took "
        "the revision, per node; read off the pods, no metrics provider is asked. FeedbackScore: mean "
        "judgement of users, 0 to 1. RefusalRate: share of answers that begin with one of "
        "feedback.refusalPhrases. Drift: population stability index of what is asked and answered, against "
        "the pod's first requests.",
    )
    query: Query | None = Field(
        default=None,
        description="PromQL that gives one value. It is asked once for each side; $selector stands for the "
        "label matchers of the pods of that side, $canary and $stable for those of the new and of the stable "
        "revision, $window for the time since the wave's nodes took the revision, for example 300s.",
    )
    samples_query: Query | None = Field(
        default=None,
        description="PromQL that gives the number of samples behind `query`, with the same variables. "
        "Without it one value is one sample, and minSamples is refused.",
    )
    direction: Literal["LowerIsBetter", "HigherIsBetter"] | None = Field(
        default=None,
        description="Which way is better, for maxDegradation of a query. Unset is LowerIsBetter; a preset "
        "knows its own.",
    )
    max: Decimal | None = Field(default=None, description="Fails above this value.")
    min: Decimal | None = Field(
        default=None,
        description="Fails below this value; not with a Sequential test.",
    )
    max_degradation: DecimalOrPercent | None = Field(
        default=None,
        description="How much worse than the stable nodes it may be: absolute (0.02) or relative (10%).",
    )
    test: Literal["Sequential", "Threshold"] | None = Field(
        default=None,
        description="Sequential: fails when the counts prove it worse, however often one looks; the default "
        "for ErrorRate, LatencyP95 and TimeToFirstTokenP95. Threshold: fails when the value is beyond its "
        "bound failureLimit times in a row; the default for all others.",
    )
    interval: Duration | None = Field(
        default=None,
        description="Time between measurements of this metric; unset takes analysis.interval.",
        json_schema_extra=_AT_LEAST_A_SECOND,
    )
    min_samples: int | None = Field(
        default=None,
        ge=1,
        description="Evidence needed on each side before the metric passes (and, for Threshold, before it "
        "fails): requests, for EvaluationScore golden cases, for FeedbackScore judgements. Default 300 "
        "for a Sequential test, 200 for Drift, 100 for RefusalRate, 50 for ErrorRate, 30 for FeedbackScore, "
        "latencies, tokens and a query with samplesQuery, 10 for EvaluationScore, 1 node for Restarts and "
        "OOMKills.",
    )
    failure_limit: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Consecutive failed measurements that fail the wave. A Sequential test fails at once: it "
        "has looked at all of them together.",
    )
    inconclusive_limit: int | None = Field(
        default=None,
        ge=1,
        le=10000,
        description="Consecutive measurements without a clear result after which onDeadline decides at once; "
        "unset waits for the deadline.",
    )
    no_data_limit: int | None = Field(
        default=None, ge=1, le=10000, description="The same for measurements that found no data."
    )
    consecutive_error_limit: int | None = Field(
        default=None,
        ge=1,
        le=10000,
        description="The same for measurements that were not made.",
    )
    required: bool = Field(
        default=True,
        description="Whether the wave waits for this metric to pass; otherwise it can only fail it.",
    )
    dry_run: bool = Field(
        default=False, description="Measured, judged and shown, but neither passes nor fails the wave."
    )


class CredentialsRef(ApiModel):
    """A Secret in the SLMDeployment's namespace with `token`, or `username` and `password`, and if need be
    `ca.crt`.
    """

    name: SecretName = Field(description="Name of the Secret.")


class PrometheusSettings(ApiModel):
    """Another Prometheus than the operator's, or other credentials for it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.url) || self.url.startsWith('https://') || !has(self.secretRef)",
                "credentials go over https only; change url or leave secretRef out",
            )
        )
    )

    url: (
        Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$", max_length=1024)] | None
    ) = Field(
        default=None,
        description="Base URL of its HTTP API; the operator's administrator must allow it (chart value "
        "prometheus.allowedURLs). Unset takes the operator's.",
    )
    secret_ref: CredentialsRef | None = Field(
        default=None, description="How to sign in there; read anew as it rotates."
    )
    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!._*'()|-]+$", max_length=150)] | None = (
        Field(default=None, description="Value of the X-Scope-OrgID header.")
    )
    timeout: Duration = Field(default="5s", description="Longest time one query may take, at most 15s.")


class Analysis(ApiModel):
    """How a wave is judged."""

    provider: Literal["Prometheus", "Direct"] | None = Field(
        default=None,
        description="Who measures. Prometheus: the one of prometheus.url, else the operator's (chart value "
        "prometheus.url). Direct: the operator scrapes the pods' /metrics itself. Unset is Prometheus where "
        "there is one, and Direct where neither names any; so is Prometheus, which earlier releases wrote "
        "into every object. status.rollout.judgedBy says who it was.",
    )
    prometheus: PrometheusSettings = Field(
        default_factory=PrometheusSettings, description="Settings of the Prometheus provider."
    )
    false_rollback_rate: Annotated[
        str, StringConstraints(pattern=r"^0\.[0-9]*[1-9][0-9]*$", max_length=12)
    ] = Field(
        default="0.01",
        description="Bound on the chance that a rollout that is no worse than allowed is rolled back by "
        "Sequential tests, over all metrics, waves and looks together.",
    )
    interval: Duration = Field(
        default="10s",
        description="Time between measurements, at least 1s.",
        json_schema_extra=_AT_LEAST_A_SECOND,
    )
    passes: int = Field(
        default=2, ge=1, le=100, description="Consecutive measurements in which every required metric passes."
    )
    metrics: list[Metric] = Field(
        default_factory=lambda: [
            Metric(name="quality", preset="EvaluationScore", max_degradation="0.03"),
            Metric(name="errors", preset="ErrorRate", max_degradation="0.02", required=False),
        ],
        min_length=1,
        max_length=20,
        description="The metrics; all required ones must pass.",
        json_schema_extra=keyed("name")
        | validations(
            cel(
                "self.exists(m, !has(m.dryRun) || !m.dryRun)",
                "every metric is dryRun: nothing would judge the wave",
            )
        ),
    )
