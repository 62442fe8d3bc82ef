# SPDX-License-Identifier: Apache-2.0
"""Stop strings in streamed text: found across pieces, never leaked in part."""

from collections.abc import Sequence


class StopMatcher:
    """Feeds text through; ends at the first of `stops` (non-empty strings)."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that is certainly before any stop string; what might begin one is held back."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max(count_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """What was held back, when no stop string came."""
        text, self._held = self._held, ""
        return text


def count_overlap(text: str, wanted: str) -> int:
    """Length of the longest end of `text` that `wanted` begins with and is not all of."""
    for length in range(min(len(wanted) - 1, len(text)), 0, -1):
        if text.endswith(wanted[:length]):
            return length
    return 0
