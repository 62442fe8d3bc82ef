# SPDX-License-Identifier: Apache-2.0
"""How long the fuzz tests run: moments with the other tests, for as long as you like by `make fuzz`."""

import os
from typing import Final

from hypothesis import HealthCheck, settings

FACTOR: Final = int(os.environ.get("SLMOPS_FUZZ", "1"))
"""Multiplies the number of examples. Above 1 they are drawn anew in each run, else always the same."""


def examples(count: int) -> settings:
    """Settings for a test that takes `count` examples with the other tests."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=count * FACTOR,
        deadline=None,
        derandomize=FACTOR == 1,
        suppress_health_check=[*slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
