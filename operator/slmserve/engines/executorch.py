# SPDX-License-Identifier: Apache-2.0
"""Text programs of ExecuTorch (`*.pte`), as transformers and executorch's own exporters make them.

The program's `forward` takes tokens [1, n] and their positions [n] (or the first position [1]) and gives
logits [1, n, vocab] or [1, vocab]; its constant method `get_max_seq_len` tells the length of its cache.
The library's Python binding links torch, which alone takes several hundred megabytes of memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import LoadedEngine
from slmserve.config import available_cpus
from slmserve.defaults import load_defaults
from slmserve.engines.base import Reuse
from slmserve.engines.executorch_rows import StatefulRowsEngine
from slmserve.engines.loading import brief
from slmserve.engines.logits import with_scheduler
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmwire.reasons import Reason

_FORWARD: Final = "forward"
_LENGTH: Final = "get_max_seq_len"
_DYNAMIC: Final = "enable_dynamic_shape"
_MOST_CALL_TOKENS: Final = 256
_CURE: Final = "export it with transformers' TorchExportableModuleForDecoderOnlyLM and a dynamic length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What is used of the library."""

    load_program: Callable[[Path], Any]
    to_tensor: Callable[[NDArray[np.int64]], Any]
    version: str


class Instance:
    """One loaded program with its cache; implements `executorch_rows.StatefulModel`."""

    def __init__(self, program: Any, to_tensor: Callable[[NDArray[np.int64]], Any]) -> None:
        self._program = program
        self._forward = program.load_method(_FORWARD)
        self._to_tensor = to_tensor
        self._takes_first = int(program.metadata(_FORWARD).input_tensor_meta(1).sizes()[0]) == 1

    def run(self, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """See `StatefulModel.run`."""
        count = 1 if self._takes_first else len(tokens)
        positions = np.arange(offset, offset + count)
        inputs = [self._to_tensor(np.ascontiguousarray(part)) for part in (tokens[None], positions)]
        logits = np.asarray(self._forward.execute(inputs)[0].numpy(), np.float32)
        last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
        return last


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    try:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise StartError(
            Reason.UNFIT, f"executorch's Python binding cannot be loaded ({error}); it needs torch beside it"
        ) from error
    # For the whole process: the binding has no thread count of a program's own.
    portable_lib._unsafe_reset_threadpool(options.threads or available_cpus())
    defaults = load_defaults(model_dir)
    binding = Binding(
        load_program=Runtime.get().load_program,
        to_tensor=torch.from_numpy,
        version=version("executorch"),
    )
    engine = load_engine(model_dir, options, binding)
    # A cache that cannot be copied is computed again: reusing a prefix would save nothing.
    return with_scheduler(engine, defaults, reuse=Reuse.NONE)


def load_engine(model_dir: Path, options: EngineOptions, binding: Binding) -> StatefulRowsEngine:
    """Load the directory's program; raises StartError with the cure when it cannot be served."""
    paths = sorted(model_dir.glob("*.pte"))
    if len(paths) != 1:
        raise StartError(Reason.UNFIT, f"{len(paths)} .pte files in the model directory; it must have one")
    try:
        program = binding.load_program(paths[0])
        width, cache_length, vocab_size = _read_form(program)
        first = Instance(program, binding.to_tensor)
    except StartError:
        raise
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to load the model") from error
    except Exception as error:
        raise StartError(Reason.UNFIT, f"ExecuTorch cannot load {paths[0].name}: {brief(error)}") from error
    waiting = [first]

    def open_instance() -> Instance:
        return waiting.pop() if waiting else Instance(binding.load_program(paths[0]), binding.to_tensor)

    return StatefulRowsEngine(
        open_instance,
        version=binding.version,
        slots=options.slots,
        max_length=min(options.context_length or cache_length, cache_length),
        vocab_size=vocab_size,
        call_tokens=min(width, _MOST_CALL_TOKENS),
    )


def _read_form(program: Any) -> tuple[int, int, int]:
    """Most tokens of a call, length of the cache and size of the vocabulary, of a program of our form."""
    if missing := sorted({_FORWARD, _LENGTH} - set(program.method_names)):
        raise StartError(Reason.UNFIT, f"the program has no method {missing}; {_CURE}")
    meta = program.metadata(_FORWARD)
    if meta.num_inputs() != 2 or meta.num_outputs() != 1:
        raise StartError(Reason.UNFIT, f"{_FORWARD} must take tokens and positions and give logits; {_CURE}")
    sizes = tuple(meta.input_tensor_meta(0).sizes())
    if len(sizes) != 2 or sizes[0] != 1:
        raise StartError(Reason.UNFIT, f"{_FORWARD} takes tokens {list(sizes)}, not [1, n]; {_CURE}")
    width = int(sizes[1])
    dynamic = _DYNAMIC not in program.method_names or bool(_constant(program, _DYNAMIC))
    if width > 1 and not dynamic:
        raise StartError(Reason.UNFIT, f"{_FORWARD} takes exactly {width} tokens; {_CURE}")
    return width, int(_constant(program, _LENGTH)), int(meta.output_tensor_meta(0).sizes()[-1])


def _constant(program: Any, name: str) -> Any:
    return program.load_method(name).execute([])[0]
