# SPDX-License-Identifier: Apache-2.0
"""One request as the scheduler sees it: token ids in, token ids out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slmserve.sampling import Sampler, SamplingParams


class Finish(StrEnum):
    """Why a generation ended."""

    END_TOKEN = "end_token"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    """The engine raised, or the model's logits were not finite."""


class Constraint(Protocol):
    """What the next token may be, for answers of a given form; called on the engine's thread."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """Mask [vocab] of the tokens that may come next, valid until the next call; None: every one."""

    def accept(self, token: int) -> None:
        """`token` was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of probabilities before temperature and constraint, of one chosen token."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token, log probability) of the likeliest, likeliest first."""


class Generation:
    """A request and its state; `cancel` is for any thread, the rest belongs to the scheduler.

    `prompt` holds 1..max_length-1 token ids; at most `max_tokens` >= 1 are generated. `inbox` gets
    every `Step` in order, on whatever thread the scheduler's `deliver` chooses.
    """

    __slots__ = (
        "adapter",
        "arrived",
        "cached_tokens",
        "cancelled",
        "constraint",
        "end_tokens",
        "generated",
        "inbox",
        "last_token",
        "length",
        "max_tokens",
        "output",
        "prompt",
        "row",
        "sampler",
        "top_logprobs",
    )

    def __init__(
        self,
        prompt: Sequence[int] | NDArray[np.int64],
        *,
        max_tokens: int,
        sampling: SamplingParams,
        end_tokens: frozenset[int],
        inbox: "Callable[[Step], Any]",
        arrived: float | None = None,
        constraint: Constraint | None = None,
        top_logprobs: int | None = None,
        adapter: str = "",
    ) -> None:
        """`top_logprobs` None: no log probabilities; else so many alternatives beside the chosen token.

        `adapter` names a LoRA adapter of the model, empty means none.
        """
        self.prompt: NDArray[np.int64] = np.asarray(prompt, np.int64)
        self.max_tokens = max_tokens
        self.sampler = Sampler(sampling)
        self.end_tokens = end_tokens
        self.inbox = inbox
        self.arrived = time.perf_counter() if arrived is None else arrived
        self.constraint = constraint
        self.top_logprobs = top_logprobs
        self.adapter = adapter
        self.cancelled = False
        self.row = -1
        """The engine's row that this request has; -1 while it waits and after its end."""
        self.length = 0
        """Tokens of this request in the row's cache."""
        self.cached_tokens = 0
        """Tokens of the prompt that were found in a cache instead of computed; final at the first Step."""
        self.generated = 0
        self.output: list[int] = []
        """Tokens chosen so far; of the last one the cache holds nothing yet."""
        self.last_token = 0

    def cancel(self) -> None:
        """Give the row back at the next step; without effect after the end."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a generation: a token, the end, or both.

    `token` is NOT_A_NUMBER (-1) when there is none; an end token comes with END_TOKEN. `at` is
    time.perf_counter() when the token was chosen.
    """

    generation: Generation
    token: int
    finish: Finish | None
    at: float
    logprobs: TokenLogprobs | None = None
    """Of `token`, where the request asks for them."""
