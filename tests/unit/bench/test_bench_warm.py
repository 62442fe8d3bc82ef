# SPDX-License-Identifier: Apache-2.0
"""The warm start's arithmetic: what is the model's and what is ours."""

import pytest

from e2e.bench.warm import build_rows, overhead_seconds

OURS = {"pod created": 3.0, "fetched": 1.0, "server started": 0.1, "loaded": 0.6, "ready": 0.2, "total": 4.9}
PEER = OURS | {"ready": 1.2, "total": 5.9}


def test_the_old_pods_end_and_the_models_load_are_no_overhead() -> None:
    assert overhead_seconds(OURS) == pytest.approx(1.3)


def test_the_target_is_judged_by_the_overhead() -> None:
    rows = {row["measure"]: row for row in build_rows([OURS] * 3, [PEER] * 3)}
    judged = rows["successor made to Ready, beyond loading the model"]
    assert (judged["ours"], judged["peer"], judged["met"]) == (1.3, 2.3, True)
    assert rows["pod deleted to successor Ready: total"]["ours"] == 4.9
    assert "pod deleted to successor Ready: resolved" not in rows
    slow = build_rows([OURS | {"total": 5.2}], [PEER])
    assert slow[-1]["met"] is False
