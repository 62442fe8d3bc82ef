# SPDX-License-Identifier: Apache-2.0
"""The gates of trained adapters, which the node and the operator both ask."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slmwire.gates import pass_gates
from slmwire.jobs import TrainOrder, TrainOutcome

COUNTS = st.integers(min_value=0, max_value=40)


def order_of(*, min_gain: float = 0.05, max_quality_loss: float = 0.02) -> TrainOrder:
    return TrainOrder(
        name="local",
        retention_seconds=1,
        min_examples=1,
        min_gain=min_gain,
        max_quality_loss=max_quality_loss,
    )


def outcome_of(
    before: float, after: float, golden: tuple[float, float] | None, **gates: float
) -> TrainOutcome:
    golden_before, golden_after = golden or (None, None)
    return pass_gates(
        order_of(**gates),
        before=before,
        after=after,
        golden_before=golden_before,
        golden_after=golden_after,
    )


@given(before=COUNTS, more=COUNTS, golden=COUNTS, lost=COUNTS)
def test_just_what_is_asked_for_passes_and_one_case_short_does_not(
    before: int, more: int, golden: int, lost: int
) -> None:
    asked, allowed = max(1, more) / 80, min(lost, golden) / 40
    after, left = before + max(1, more), golden - min(lost, golden)
    gates = {"min_gain": asked, "max_quality_loss": allowed}
    shares = golden / 40, left / 40
    assert outcome_of(before / 80, after / 80, shares, **gates) is TrainOutcome.ACCEPTED
    assert outcome_of(before / 80, (after - 1) / 80, shares, **gates) is TrainOutcome.NO_GAIN
    if left:
        worse = golden / 40, (left - 1) / 40
        assert outcome_of(before / 80, after / 80, worse, **gates) is TrainOutcome.QUALITY_LOSS


def test_an_adapter_that_is_no_better_is_none_even_where_no_gain_is_asked_for() -> None:
    assert outcome_of(0.5, 0.5, None, min_gain=0.0) is TrainOutcome.NO_GAIN
    assert outcome_of(0.5, 0.51, None, min_gain=0.0) is TrainOutcome.ACCEPTED


def test_trainings_one_after_another_lose_no_more_than_one_may() -> None:
    """Each is compared with the model alone, so what is allowed does not add up."""
    alone = 0.98
    golden = [0.97, 0.96, 0.955, 0.94]
    found = [outcome_of(0.1 * i, 0.1 * i + 0.1, (alone, after)) for i, after in enumerate(golden)]
    assert [before - after <= 0.021 for before, after in pairwise(golden)] == [True] * 3
    assert found == [TrainOutcome.ACCEPTED] * 2 + [TrainOutcome.QUALITY_LOSS] * 2
