# SPDX-License-Identifier: Apache-2.0
"""`status.feedback`: where the rules of spec.feedback stand."""

from typing import Any, Final

from pydantic import Field

from slmops.api.base import ApiModel, Timestamp, keyed

MAX_ROLLED_BACK: Final = 20
_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}


class FeedbackRuleStatus(ApiModel):
    """Where one rule stands for the stable revision."""

    name: str = Field(description="Name of the rule.")
    digest: str = Field(description="Of the rule as written: a rule that is changed begins anew.")
    verdict: str = Field(
        default="", description="Of the latest measurement: Pass, Fail, Inconclusive, NoData, ProviderError."
    )
    value: str | None = Field(default=None, description="Latest value of the variant that decided.")
    samples: int = Field(default=0, description="Samples behind it.")
    variant: str = Field(default="", description="Variant (device class) that decided; empty for all.")
    message: str = Field(default="", max_length=512, description="Why this verdict.")
    measured_at: Timestamp | None = Field(default=None, description="When it was measured last.")
    failing_seconds: int | None = Field(
        default=None,
        description="For how long it has been seen broken, since it last held; unset while it holds.",
    )
    fired_at: Timestamp | None = Field(
        default=None, description="When it had been broken for long enough; unset once it holds again."
    )


class FeedbackRollback(ApiModel):
    """A way back that is under way because of a rule."""

    revision: str = Field(description="Revision that broke the rule.")
    to: str = Field(description="Revision that is taken up again.")
    message: str = Field(default="", max_length=512, description="The rule and what was seen.")
    at: Timestamp = Field(description="When it began.")


class FeedbackStatus(ApiModel):
    """Where the rules of spec.feedback stand."""

    revision: str = Field(default="", description="Stable revision that the rules are about.")
    rules: list[FeedbackRuleStatus] = Field(
        default_factory=list, description="One entry for each rule.", json_schema_extra=keyed("name")
    )
    rollback: FeedbackRollback | None = Field(
        default=None, description="Set while the fleet goes back because of a rule."
    )
    look_asked_at: Timestamp | None = Field(
        default=None, description="When a rule asked the SLMModel to look at its source again."
    )
    rolled_back: list[str] = Field(
        default_factory=list,
        description="Revisions that a rule took back or tried to; it does so once for each.",
        json_schema_extra=_SET,
    )
