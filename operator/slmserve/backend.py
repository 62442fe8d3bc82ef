# SPDX-License-Identifier: Apache-2.0
"""The port between the server and whatever turns prompts into tokens.

Engines that compute logits implement `engines.base.Engine` and get our slot scheduler, which is a
`Backend`; a library that has a scheduler of its own implements `Backend` directly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from slmserve.embedding import Embedder
from slmserve.generation import Generation, Step

Deliver = Callable[[Sequence[Step]], None]
"""Called on the backend's thread with steps in order; must not block."""


class QueueFullError(Exception):
    """All rows are taken and the queue holds its maximum."""


class ClosedError(Exception):
    """The backend takes no more work."""


class Capability(StrEnum):
    """What a backend can do beside plain generation; a request that needs more is refused by name."""

    LOGPROBS = "logprobs"
    CONSTRAINT = "constraint"
    """Answers of a given form: response_format, forced tools."""
    SEED = "seed"


class Backend(Protocol):
    """Runs generations; `submit`, `close` and the properties are for any thread."""

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a row."""

    @property
    def busy(self) -> int:
        """Rows in use."""

    def start(self) -> None:
        """Begin to work; called once."""

    def submit(self, generation: Generation) -> None:
        """Queue a request; raises QueueFullError or ClosedError."""

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        """Progress was made within `stuck_seconds`, and the engine still works."""

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """End all requests as cancelled, then the thread; waits at most `timeout_seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the model's own files say about how to generate."""

    end_tokens: frozenset[int]
    temperature: float = 0.0
    """Used when a request names neither temperature nor top_p."""
    top_p: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """A loaded engine, for people, metrics and limits."""

    name: str
    version: str
    slots: int
    max_length: int
    """Tokens one request can hold, prompt and answer together."""
    vocab_size: int
    cache_bytes: int = 0
    """Most memory that the attention cache of all slots and spare rows can take; 0 when the engine does not
    say."""
    spare_rows: int = 0
    """Rows of the cache beyond the slots, each as long as one."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests can name."""
    capabilities: frozenset[Capability] = field(default_factory=lambda: frozenset(Capability))

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Attention cache of one token of one request; None when the engine does not say."""
        rows = self.slots + self.spare_rows
        return self.cache_bytes // (rows * self.max_length) if self.cache_bytes else None


BuildBackend = Callable[[int, Deliver], Backend]
"""(max_queue, deliver) -> a backend that is not started yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """What an engine's `load` gives: it has generated one token, or embedded one text, already."""

    info: EngineInfo
    defaults: GenerationDefaults
    build_backend: BuildBackend | None
    """None: the model only embeds."""
    embedder: Embedder | None = None
    """None: the model only generates."""
