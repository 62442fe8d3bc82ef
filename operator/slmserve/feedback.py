# SPDX-License-Identifier: Apache-2.0
"""Which answers may still be judged, and how they were: a bounded memory without any text."""

from collections import OrderedDict
from enum import StrEnum
from typing import Final

_MOST: Final = 8192


class Vote(StrEnum):
    """What became of a judgement."""

    COUNTED = "counted"
    REPEATED = "repeated"
    """The same one came before; a client that repeats a request whose reply it lost has done no harm."""
    CONFLICTING = "conflicting"
    """Another one came before. It stands: counters only grow, so a vote cannot be taken back."""
    UNKNOWN = "unknown"
    """This process did not give that answer, or has forgotten it."""


class GivenAnswers:
    """The identifiers of the last answers with the score of each that was judged; for the event loop."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._scores: OrderedDict[str, float | None] = OrderedDict()

    def add(self, identifier: str) -> None:
        """An answer was given; the oldest is forgotten when there are too many."""
        self._scores[identifier] = None
        if len(self._scores) > self._most:
            self._scores.popitem(last=False)

    def judge(self, identifier: str, score: float) -> Vote:
        """Note the judgement of an answer; only the first one counts."""
        if identifier not in self._scores:
            return Vote.UNKNOWN
        before = self._scores[identifier]
        if before is None:
            self._scores[identifier] = score
            return Vote.COUNTED
        return Vote.REPEATED if before == score else Vote.CONFLICTING
