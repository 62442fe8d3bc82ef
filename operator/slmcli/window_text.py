# SPDX-License-Identifier: Apache-2.0
"""The windows that a rollout waits for, in words."""

from collections.abc import Sequence

from slmcli.view import DeploymentView
from slmops.api.rollout import Window
from slmops.api.status import ConditionType


def window_wait(view: DeploymentView) -> str:
    """The windows that are waited for; empty when none are."""
    progressing = view.condition(ConditionType.PROGRESSING)
    if progressing is None or progressing.reason != "OutsideWindow" or view.spec is None:
        return ""
    if "spec.distribution.windows" in progressing.message:
        told = _window_text(view.spec.distribution.windows)
        return f"the next window for fetching models: {'; '.join(told)}"
    return f"the next window: {'; '.join(_window_text(view.spec.rollout.windows))}"


def _window_text(windows: Sequence[Window]) -> list[str]:
    return [
        f"{','.join(w.days) or 'every day'} {w.start_time}-{w.end_time} {w.time_zone}" for w in windows
    ] or ["none is configured"]
