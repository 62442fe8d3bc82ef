# SPDX-License-Identifier: Apache-2.0
"""The engines that the conformance suite runs against, in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from openai import OpenAI

from slmserve.backend import Capability
from tests.unit.slmserve.engine_models import build_llama_dir, build_openvino_dir
from tests.unit.slmserve.process import ORDERS, ServerProcess

SLOTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server, a client of it, and what it should and should not be able to do."""

    engine: str
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


ENGINES_UNDER_TEST: Final = (
    EngineUnderTest(engine="onnxruntime", build=lambda _: ORDERS / "v1-int4"),
    EngineUnderTest(engine="llama.cpp", build=partial(build_llama_dir, kind="Q8_0")),
    EngineUnderTest(
        engine="openvino",
        build=partial(build_openvino_dir, kind="Q8_0"),
        lacks=frozenset({Capability.LOGPROBS, Capability.CONSTRAINT}),
    ),
    EngineUnderTest(engine="litert", build=lambda _: ORDERS / "v1-litert"),
)
"""One entry for each engine."""
