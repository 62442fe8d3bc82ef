# SPDX-License-Identifier: Apache-2.0
"""Which answers may still be judged, and how they were: a bounded memory without any text."""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Judgement:
    score: float
    mark: bytes
    """Of the correction, empty without one."""


class GivenAnswers:
    """The identifiers of the last answers with how each that was judged was; for the event loop."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._key = secrets.token_bytes(16)
        """Marks of short texts could be guessed otherwise."""
        self._judged: OrderedDict[str, _Judgement | None] = OrderedDict()

    def add(self, identifier: str) -> None:
        """An answer was given; the oldest is forgotten when there are too many."""
        self._judged[identifier] = None
        if len(self._judged) > self._most:
            self._judged.popitem(last=False)

    def judge(self, identifier: str, score: float, correction: str | None = None) -> Vote:
        """Note the judgement of an answer; only the first one counts."""
        if identifier not in self._judged:
            return Vote.UNKNOWN
        judgement = _Judgement(score, self._mark(correction))
        before = self._judged[identifier]
        if before is None:
            self._judged[identifier] = judgement
            return Vote.COUNTED
        return Vote.REPEATED if before == judgement else Vote.CONFLICTING

    def _mark(self, correction: str | None) -> bytes:
        if correction is None:
            return b""
        text = correction.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=16).digest()
