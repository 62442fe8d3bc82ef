# SPDX-License-Identifier: Apache-2.0
"""`spec.rollout`: how a new revision reaches the fleet."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from slmops.api.analysis import Analysis
from slmops.api.base import ApiModel, Duration, LabelSelector, Name, cel, exactly_one_of, keyed, validations

CountOrPercent = Annotated[str, StringConstraints(pattern=r"^([0-9]+%|[0-9]+)$", max_length=10)] | int
"""A number, or a percentage that ends in `%`."""
TimeOfDay = Annotated[
    str, StringConstraints(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", max_length=5)
]
"""HH:MM; 24:00 is the end of the day."""
_INT_OR_STRING: Final[dict[str, Any]] = {"x-kubernetes-int-or-string": True}


class Exponential(ApiModel):
    """Waves that grow: each takes `factor` times the share of the one before, until all have it."""

    start_percent: int = Field(default=1, ge=1, le=50, description="Share of all nodes after the first.")
    factor: int = Field(default=2, ge=2, le=10, description="Growth of the share from wave to wave.")


class Wave(ApiModel):
    """A group of nodes that take a new revision together."""

    model_config = ConfigDict(
        json_schema_extra=validations(exactly_one_of("nodeSelector", "count", "percent", "exponential"))
    )

    name: Name = Field(description="Name of the wave.")
    node_selector: LabelSelector | None = Field(
        default=None, description="Nodes of this wave, for example a lab or a pilot site."
    )
    count: int | None = Field(
        default=None, ge=1, le=100000, description="Number of nodes of this wave, chosen by a stable hash."
    )
    percent: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Share of all matching nodes that has the new revision after this wave.",
    )
    exponential: Exponential | None = Field(
        default=None,
        description="Stands for several waves, NAME-1, NAME-2 and so on, of a growing share each; the last "
        "takes all that is left.",
    )
    max_per_site: int | None = Field(
        default=None,
        ge=1,
        le=100000,
        description="Most nodes of one site in this wave; the others of the site come in a later one.",
    )
    empty_policy: Literal["Refuse", "Skip"] = Field(
        default="Refuse",
        description="For a nodeSelector that selects no node: Refuse does not begin a rollout (Accepted is "
        "False), Skip goes on with the next wave.",
    )
    approval: Literal["Automatic", "Manual"] = Field(
        default="Automatic",
        description="Manual: the wave fetches its models ahead and then waits for the annotation "
        "slmops.dev/promote (or `kubectl slm promote`) before any node takes the revision.",
    )
    soak: Duration | None = Field(
        default=None, description="Time this wave runs before it is judged; unset takes rollout.soak."
    )


class Window(ApiModel):
    """A time of the week in which something may begin."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.startTime != self.endTime",
                "the window never opens: startTime and endTime are equal; 00:00 to 24:00 is the whole day",
            ),
            cel("self.startTime != '24:00'", "startTime must be before 24:00"),
        )
    )

    days: list[Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]] = Field(
        default_factory=list,
        max_length=7,
        description="Days on which it opens; empty means every day.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    start_time: TimeOfDay = Field(description="When it opens, HH:MM.")
    end_time: TimeOfDay = Field(description="When it closes, HH:MM; before startTime means on the next day.")
    time_zone: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$", max_length=64)
    ] = Field(default="UTC", description="IANA name of the time zone, for example Europe/Berlin.")


class Rollback(ApiModel):
    """How a revision is taken back."""

    max_unavailable: CountOrPercent | None = Field(
        default=None,
        description="The same as rollout.maxUnavailable, for the way back; unset takes that.",
        json_schema_extra=_INT_OR_STRING,
    )


def _deadline_after_soak(subject: str) -> str:
    return (
        f"!has({subject}.soak) || !has(self.progressDeadline) || "
        f"duration({subject}.soak) < duration(self.progressDeadline)"
    )


class Rollout(ApiModel):
    """How a new revision reaches the fleet."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            # has(): the API server checks the rule against the default {} before it fills that in
            cel(
                _deadline_after_soak("self"),
                "progressDeadline must be longer than soak, or there is no time to judge a wave",
            ),
            cel(
                f"!has(self.waves) || self.waves.all(w, {_deadline_after_soak('w')})",
                "progressDeadline must be longer than the soak of every wave",
            ),
        )
    )

    strategy: Literal["Waves", "Recreate"] = Field(
        default="Waves",
        description="Recreate: all nodes take the new revision at once, the old pod going first; no waves, "
        "no analysis, no rollback by itself.",
    )
    waves: list[Wave] = Field(
        default_factory=lambda: [Wave(name="canary", percent=10), Wave(name="rest", percent=100)],
        min_length=1,
        max_length=20,
        description="Waves in order: selectors and counts first, then growing percentages, the last one 100 "
        "or exponential.",
        json_schema_extra=keyed("name")
        | validations(
            cel(
                "(has(self[self.size() - 1].percent) && self[self.size() - 1].percent == 100) || "
                "has(self[self.size() - 1].exponential)",
                "the last wave must be percent: 100 or exponential, or some nodes would never get a new "
                "revision",
            ),
            cel(
                "self.map(w, has(w.percent) ? w.percent : (has(w.exponential) ? 101 : 0)).isSorted() && "
                "self.all(w, !has(w.percent) || "
                "self.exists_one(v, has(v.percent) && v.percent == w.percent)) && "
                "self.filter(w, has(w.exponential)).size() <= 1",
                "waves with a nodeSelector or a count come first, then percentages, each above the one "
                "before, then at most one exponential",
            ),
            cel(
                "!has(self[self.size() - 1].maxPerSite)",
                "the last wave takes all that is left: leave its maxPerSite out",
            ),
        ),
    )
    windows: list[Window] = Field(
        default_factory=list,
        max_length=20,
        description="Times in which nodes may take the new revision; empty means always. Outside them no "
        "node begins to take it and a wave's deadline stands still; what has begun is finished and judged. "
        "A rollback waits for no window.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    max_unavailable: CountOrPercent = Field(
        default="10%",
        description="Nodes (a number, or a percentage of all nodes, at least one) that may be without a "
        "ready pod because of the rollout.",
        json_schema_extra=_INT_OR_STRING,
    )
    max_unavailable_per_site: int | None = Field(
        default=None, ge=1, le=100000, description="The same for the nodes of one site; unset means no limit."
    )
    max_failures: CountOrPercent = Field(
        default=0,
        description="Nodes of the current wave (a number, or a percentage of them, rounded down) that may "
        "fail before it is rolled back.",
        json_schema_extra=_INT_OR_STRING,
    )
    quorum_percent: int = Field(
        default=70,
        ge=1,
        le=100,
        description="Share of a wave's nodes that must have taken the revision; offline nodes are deferred. "
        "Below it the wave holds.",
    )
    soak: Duration = Field(default="60s", description="Time a wave runs before it is judged.")
    progress_deadline: Duration = Field(
        default="30m", description="Longest time a wave may take, prefetch not counted."
    )
    prefetch_deadline: Duration = Field(
        default="24h", description="Longest time a wave's nodes may take to fetch and verify the model."
    )
    on_deadline: Literal["Hold", "Rollback"] = Field(
        default="Hold", description="What happens when a deadline passes without a verdict."
    )
    rollback: Rollback = Field(default_factory=Rollback, description="How a revision is taken back.")
    paused: bool = Field(
        default=False,
        description="Stops the rollout where it is; nothing is moved. The annotation slmops.dev/paused: "
        '"true" does the same where spec belongs to GitOps.',
    )
    analysis: Analysis = Field(default_factory=Analysis, description="How a wave is judged.")
