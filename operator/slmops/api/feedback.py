# SPDX-License-Identifier: Apache-2.0
"""`spec.feedback`: rules about the stable revision in daily life, after its rollout."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.analysis import Query
from slmops.api.base import (
    ApiModel,
    Decimal,
    Duration,
    Name,
    between,
    cel,
    exactly_one_of,
    keyed,
    validations,
)

MAX_RULES: Final = 10
Phrase = Annotated[
    str, StringConstraints(pattern="[^\\s\"'*_#>\u2018\u2019\u201c\u201d-]", min_length=3, max_length=80)
]
"""The begin of an answer. Spaces and marks are passed over there, so these alone would be every answer."""


class FeedbackMetric(ApiModel):
    """What a rule looks at."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            exactly_one_of("preset", "query"),
            cel("!has(self.samplesQuery) || has(self.query)", "samplesQuery belongs to a query"),
        )
    )

    preset: (
        Literal[
            "FeedbackScore",
            "RefusalRate",
            "Drift",
            "ErrorRate",
            "LatencyP95",
            "TimeToFirstTokenP95",
            "TokensPerSecond",
            "EvaluationScore",
        ]
        | None
    ) = Field(default=None, description="As in rollout.analysis.metrics[].preset.")
    query: Query | None = Field(
        default=None,
        description="PromQL that gives one value; $selector stands for the label matchers of the stable "
        "revision's pods, $window for the rule's window.",
    )
    samples_query: Query | None = Field(
        default=None, description="PromQL that gives the number of samples behind `query`."
    )


class FeedbackRule(ApiModel):
    """One rule and what follows from breaking it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("has(self.max) || has(self.min)", "set max or min: a rule without a bound judges nothing"),
            cel(
                "!has(self.min) || !has(self.max) || double(self.min) <= double(self.max)",
                "min is above max: no value could hold the rule",
            ),
            cel(
                "!has(self.minSamples) || has(self.metric.preset) || has(self.metric.samplesQuery)",
                "nobody counts the samples of a query: give metric.samplesQuery or leave minSamples out",
            ),
        )
    )

    name: Name = Field(description="Name of the rule, shown in status.")
    metric: FeedbackMetric = Field(description="What is measured, over the whole fleet, by variant.")
    max: Decimal | None = Field(default=None, description="Broken above this value.")
    min: Decimal | None = Field(default=None, description="Broken below this value.")
    window: Duration = Field(
        default="1h",
        description="Time before now that is looked at.",
        json_schema_extra=between("1m", "24h"),
    )
    min_samples: int | None = Field(
        default=None,
        ge=1,
        description="Evidence needed before the rule says anything; the default is that of "
        "rollout.analysis.metrics[].minSamples.",
    )
    for_: Duration = Field(
        default="30m",
        alias="for",
        description="How long the rule must be broken before anything is done. Time in which nothing was "
        "known does not count.",
        json_schema_extra=between("0s", "168h"),
    )
    action: Literal["Notify", "Hold", "RollBack", "NewModelVersion", "TrainAdapter"] = Field(
        default="Notify",
        description="Notify: condition FeedbackHealthy and an Event. Hold: no rollout begins or goes on "
        "while the rule is broken. RollBack: back to the stable revision before this one, once per "
        "revision; the revision is remembered as failed. NewModelVersion: the SLMModel in model.from looks "
        "at its source again, at most every six hours. TrainAdapter: the site whose variant decided trains "
        "an adapter, every site of spec.adaptation where it was none of theirs.",
    )


class FeedbackPolicy(ApiModel):
    """What users and the devices themselves say of the stable revision, and what follows from it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.rules) || (has(self.refusalPhrases) && size(self.refusalPhrases) > 0) || "
                "!self.rules.exists(r, has(r.metric.preset) && r.metric.preset == 'RefusalRate')",
                "preset RefusalRate needs refusalPhrases: without any, no answer counts as a refusal",
            )
        )
    )

    interval: Duration = Field(
        default="1m",
        description="Time between measurements of a rule.",
        json_schema_extra=between("10s", "1h"),
    )
    refusal_phrases: list[Phrase] = Field(
        default_factory=list,
        max_length=20,
        description="An answer that begins with one of these counts as a refusal (RefusalRate); upper and "
        "lower case are the same. Empty counts none. Part of the revision.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    rules: list[FeedbackRule] = Field(
        default_factory=list,
        max_length=MAX_RULES,
        description="The rules; each is measured by rollout.analysis.provider.",
        json_schema_extra=keyed("name"),
    )
