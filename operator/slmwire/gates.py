# SPDX-License-Identifier: Apache-2.0
"""The gates of an adapter that was trained at a site.

The container that judged it asks this function, and so does the operator, which takes no node's word for it.
"""

from typing import Final

from slmwire.jobs import TrainOrder, TrainOutcome

_ROUNDING: Final = 1e-9
"""Shares are quotients: a difference of just what is asked for must not fail by its last bit."""


def pass_gates(
    order: TrainOrder,
    *,
    before: float,
    after: float,
    golden_before: float | None,
    golden_after: float | None,
) -> TrainOutcome:
    """ACCEPTED, NO_GAIN or QUALITY_LOSS, by shares of answers as expected, 0..1.

    `before` and `after` are of the held-back examples, with what serves now and with the new adapter.
    `golden_before` and `golden_after` are of the model's golden set, without any training and with the
    new adapter: were it compared with an earlier one, each training could lose a little more. They are None
    for a model without such a set.
    """
    gain = after - before
    if gain <= 0 or gain < order.min_gain - _ROUNDING:
        return TrainOutcome.NO_GAIN
    loss = 0.0
    if golden_before is not None and golden_after is not None:
        loss = golden_before - golden_after
    return TrainOutcome.QUALITY_LOSS if loss > order.max_quality_loss + _ROUNDING else TrainOutcome.ACCEPTED
