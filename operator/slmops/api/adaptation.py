# SPDX-License-Identifier: Apache-2.0
"""`spec.adaptation`: sites that adapt the model to their wording, on their own hardware and with data that
never leaves the node."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.base import ApiModel, Decimal, Duration, Name, between, cel, validations
from slmops.api.profile import LabelValue
from slmops.api.variant import ResourceAmounts, Resources

MAX_SITES: Final = 16
BASE_NAME: Final = "base"
"""Name under which a model with a default adapter is asked for without it: no adapter can have it."""
Redaction = Literal["Email", "Phone", "CardNumber", "Iban", "IpAddress", "Url"]
_REDACTIONS: Final[tuple[Redaction, ...]] = ("Email", "Phone", "CardNumber", "Iban", "IpAddress", "Url")
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}


def _share() -> dict[str, Any]:
    return validations(cel("double(self) <= 1.0", "must be a share from 0 to 1"))


class Collection(ApiModel):
    """What the nodes of the sites keep of the feedback that they get."""

    retention: Duration = Field(
        default="168h",
        description="How long an example may be kept; no training takes an older one. A change is a new "
        "revision.",
        json_schema_extra=between("1h", "8760h"),
    )
    max_examples: int = Field(
        default=1000,
        ge=10,
        le=100000,
        description="Most examples that a node keeps; the oldest go first.",
    )
    redact: list[Redaction] = Field(
        default_factory=lambda: list(_REDACTIONS),
        max_length=6,
        description="What is taken out of texts before they are written, replaced by its kind in angle "
        "brackets. An empty list takes out nothing.",
        json_schema_extra=_SET,
    )
    patterns: list[Pattern] = Field(
        default_factory=list,
        max_length=20,
        description="Regular expressions of Python: what matches is taken out, too.",
        json_schema_extra=_SET,
    )


class Training(ApiModel):
    """How an adapter is trained: one Job at a time for a site, on a node of it that serves."""

    min_examples: int = Field(
        default=100,
        ge=1,
        le=100000,
        description="Fewest examples to train on; those that are held back to judge by come on top. A node "
        "with fewer trains nothing, and the next one of the site is tried.",
    )
    max_epochs: int = Field(
        default=20, ge=1, le=1000, description="Most times that a training goes through its examples."
    )
    learning_rate: Decimal = Field(
        default="0.003",
        description="Learning rate, above 0 and at most 1.",
        json_schema_extra=validations(
            cel("double(self) > 0.0 && double(self) <= 1.0", "must be above 0 and at most 1")
        ),
    )
    cooldown: Duration = Field(
        default="24h",
        description="Least time after the end of a training until a rule may ask for another one at the "
        "site. The annotation slmops.dev/train and a new version of the model do not wait for it.",
        json_schema_extra=between("1h", "8760h"),
    )
    deadline: Duration = Field(
        default="1h",
        description="Longest time of one Job.",
        json_schema_extra=between("1m", "24h"),
    )
    resources: Resources = Field(
        default_factory=lambda: Resources(requests=ResourceAmounts(cpu="100m", memory="256Mi")),
        description="Of each container of the Job. The model is loaded beside the one that serves.",
    )


class AdaptationGates(ApiModel):
    """What an adapter must hold before it is rolled out; the rollout's analysis comes on top."""

    min_gain: Decimal = Field(
        default="0.05",
        description="By how much the share of held-back examples that are answered as expected must rise "
        "above that of what serves now.",
        json_schema_extra=_share(),
    )
    max_quality_loss: Decimal = Field(
        default="0.02",
        description="By how much the share of the model's own golden set that is answered as expected may "
        "fall below that of the model without any training.",
        json_schema_extra=_share(),
    )


class Adaptation(ApiModel):
    """Sites that train a LoRA adapter of their own from corrections that came with feedback.

    Each such site is a class of its own, as if an override named it: its variants are called VARIANT-SITE.
    """

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                f"!has(self.name) || self.name != '{BASE_NAME}'",
                f"no adapter can be called {BASE_NAME}: that names the model without one",
            ),
            cel(
                "!has(self.training) || !has(self.training.minExamples) || !has(self.collect) || "
                "!has(self.collect.maxExamples) || self.training.minExamples < self.collect.maxExamples",
                "training.minExamples is not below collect.maxExamples: no node could ever train",
            ),
        )
    )

    name: Name = Field(
        default="local",
        description="Name of the adapter; it replaces one of the model's own or of an override of this name.",
    )
    sites: list[LabelValue] = Field(
        min_length=1,
        max_length=MAX_SITES,
        description="Sites that take part, as values of placement.siteLabel. Others keep and train nothing.",
        json_schema_extra=_SET,
    )
    collect: Collection = Field(
        default_factory=Collection, description="What nodes keep of the feedback that they get."
    )
    training: Training = Field(default_factory=Training, description="How adapters are trained.")
    gates: AdaptationGates = Field(
        default_factory=AdaptationGates, description="What an adapter must hold before it is rolled out."
    )


def adaptation_rules() -> tuple[dict[str, Any], ...]:
    """CEL rules for spec."""
    return (
        cel(
            "!has(self.placement.mode) || self.placement.mode != 'Replicas' || !has(self.adaptation)",
            "adaptation needs placement.mode PerNode: examples and adapters stay on the nodes of a site",
        )
        | {"fieldPath": ".adaptation"},
        cel(
            "!has(self.adaptation) || !has(self.overrides) || "
            f"!self.overrides.exists(o, has(o.adapters) && o.adapters.exists(a, a.name == '{BASE_NAME}'))",
            f"with adaptation no adapter of overrides can be called {BASE_NAME}, which names the model "
            "without the trained one; rename it",
        ),
        cel(
            "has(self.adaptation) || !has(self.feedback) || !has(self.feedback.rules) || "
            "!self.feedback.rules.exists(r, has(r.action) && r.action == 'TrainAdapter')",
            "feedback.rules[].action TrainAdapter needs adaptation: the sites that may train",
        ),
    )
