# SPDX-License-Identifier: Apache-2.0
"""How much prompt to compute before the others get their turn, and whose prompt comes first."""

from typing import Final

_STALL_SECONDS: Final = 0.12
"""Prompt work between two decode steps takes about this long: a pause that a reader hardly sees."""
_LEAST_TOKENS: Final = 16
"""Below this a call costs what loading the weights costs, and prompts would take for ever."""
_DECAY: Final = 0.8
"""Weight of the calls before, at each new one: some ten calls count."""


class Pace:
    """Measures what a token of a prompt costs; the clock is the caller's."""

    def __init__(self, *, most_tokens: int) -> None:
        """`most_tokens`: the engine's `prefill_chunk`."""
        self._most = most_tokens
        self._tokens = 0.0
        self._seconds = 0.0

    def record(self, *, tokens: int, seconds: float) -> None:
        """A prefill call of `tokens` took `seconds`."""
        self._tokens = self._tokens * _DECAY + tokens
        self._seconds = self._seconds * _DECAY + seconds

    @property
    def token_seconds(self) -> float:
        """Time of one token; 0 before the first call."""
        return self._seconds / self._tokens if self._tokens else 0.0

    @property
    def budget(self) -> int:
        """Tokens of prompts that may be computed while others wait for theirs."""
        if not self._tokens:
            return min(_LEAST_TOKENS, self._most)
        seconds = self.token_seconds
        wanted = min(_STALL_SECONDS / seconds, self._most) if seconds > 0 else self._most
        return min(self._most, max(_LEAST_TOKENS, int(wanted)))

    def cut(self, *, left: int, spent: int, budget: int) -> int:
        """Tokens of a prompt with `left` to go that fit in the rest of `budget`; 0: not worth a call."""
        rest = budget - spent
        return min(left, rest) if left <= rest or rest >= min(_LEAST_TOKENS, budget) else 0

    def rank(self, *, arrived: float, left: int) -> float:
        """The prompt with the smallest rank comes next: arrival plus the seconds it still takes.

        Shortest remaining first gives the least mean time to first token, where turns of equal
        size would end all prompts late. Adding the arrival is the ageing: no request that comes
        later than a prompt's own work lasts can overtake it, so none waits for ever.
        """
        return arrived + left * self.token_seconds
