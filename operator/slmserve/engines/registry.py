# SPDX-License-Identifier: Apache-2.0
"""The engines by name, which of them this image has, and which of them takes a model directory."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from slmserve.backend import LoadedEngine
from slmserve.errors import StartError
from slmwire.reasons import Reason

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Settings that every engine understands."""

    slots: int
    context_length: int
    """Tokens per slot; 0 means the model's own limit, more than that is cut to it."""
    threads: int
    """0 means what suits the model and the CPUs."""
    more_adapters: tuple[tuple[str, str], ...] = ()
    """Names and files of LoRA adapters outside of the model directory, for engines that take the kind."""


class EngineModule(Protocol):
    """What a module of `slmserve.engines` offers; it may import its library at once."""

    def load(self, model_dir: Path, options: EngineOptions) -> LoadedEngine:
        """Load and generate one token; raises StartError with reason and cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One engine: the files it takes, the library it needs and the module that loads it."""

    name: str
    patterns: tuple[str, ...]
    """Glob patterns below the model directory; each has to match a file."""
    library: str
    """Package that has to be importable."""
    module: str
    absent: tuple[str, ...] = ()
    """Glob patterns of files that another engine's format has: none may match."""

    def takes(self, model_dir: Path) -> bool:
        """Whether the directory holds the files of this engine's format."""
        if any(any(model_dir.glob(pattern)) for pattern in self.absent):
            return False
        return all(any(model_dir.glob(pattern)) for pattern in self.patterns)

    @property
    def installed(self) -> bool:
        """Whether this image has the library."""
        return importlib.util.find_spec(self.library) is not None

    @property
    def version(self) -> str:
        """Version of the package that has the library; empty when it is not installed."""
        for package in importlib.metadata.packages_distributions().get(self.library, ()):
            return importlib.metadata.version(package)
        return ""

    def load(self, model_dir: Path, options: EngineOptions) -> LoadedEngine:
        """Import the module and load; raises StartError with reason and cure."""
        module: EngineModule = importlib.import_module(self.module)
        return module.load(model_dir, options)


ENGINES: Final[Mapping[str, EngineKind]] = {
    kind.name: kind
    for kind in (
        EngineKind(
            name="onnxruntime",
            patterns=("genai_config.json",),
            library="onnxruntime",
            module="slmserve.engines.onnx_slots",
        ),
        EngineKind(
            name="llama.cpp",
            patterns=("*.gguf",),
            library="xllamacpp",
            module="slmserve.engines.llama_cpp",
        ),
        EngineKind(
            name="openvino",
            patterns=("openvino_model.xml",),
            library="openvino_genai",
            module="slmserve.engines.openvino",
        ),
        EngineKind(
            name="litert",
            patterns=("*.tflite",),
            library="ai_edge_litert",
            module="slmserve.engines.litert",
        ),
        EngineKind(
            name="executorch",
            patterns=("*.pte",),
            library="executorch",
            module="slmserve.engines.executorch",
        ),
        EngineKind(
            name="encoder",
            patterns=("model.onnx", "config.json"),
            absent=("genai_config.json",),
            library="onnxruntime",
            module="slmserve.engines.encoder",
        ),
    )
}
"""In the order of preference where a directory suits several."""


def find_candidates(model_dir: Path, engine: str) -> tuple[EngineKind, ...]:
    """Installed engines that take the directory, the preferred first; `engine` may narrow them to one.

    Raises StartError (Unfit) that says what is missing when there is none.
    """
    if engine not in ("", AUTO):
        kind = ENGINES.get(engine)
        if kind is None:
            raise StartError(Reason.UNFIT, f"engine {engine!r} is not one of {', '.join(ENGINES)}")
        if not kind.installed:
            raise StartError(
                Reason.UNFIT, f"this image has no {kind.library}; use the image tag for engine {engine}"
            )
        return (kind,)
    fitting = [kind for kind in ENGINES.values() if kind.takes(model_dir)]
    if not fitting:
        formats = "; ".join(f"{kind.name}: {', '.join(kind.patterns)}" for kind in ENGINES.values())
        raise StartError(
            Reason.UNFIT, f"the model directory has the files of no known engine ({formats}); export it again"
        )
    installed = tuple(kind for kind in fitting if kind.installed)
    if not installed:
        names = ", ".join(kind.name for kind in fitting)
        raise StartError(Reason.UNFIT, f"the model is for {names}, which this image lacks; use its image tag")
    return installed
