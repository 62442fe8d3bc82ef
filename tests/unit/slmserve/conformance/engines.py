# SPDX-License-Identifier: Apache-2.0
"""The engines that the conformance suite runs against, in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openai import OpenAI

from slmserve.backend import Capability
from tests.unit.slmserve.process import ORDERS, ServerProcess

SLOTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server, a client of it, and what it should and should not be able to do."""

    server: ServerProcess
    client: OpenAI
    context: int
    lacks: frozenset[Capability]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUnderTest:
    """One engine with a model; `build` gets an empty directory and returns the model directory.

    The model needs a chat template and a context of 128 tokens or more, and takes English text. What the
    engine `lacks` has to be refused by name.
    """

    engine: str
    build: Callable[[Path], Path]
    lacks: frozenset[Capability] = frozenset()


ENGINES_UNDER_TEST: Final = (EngineUnderTest(engine="onnxruntime", build=lambda _: ORDERS / "v1-int4"),)
"""One entry for each engine."""
