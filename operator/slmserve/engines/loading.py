# SPDX-License-Identifier: Apache-2.0
"""What the loaders of several engines have in common."""

import mmap
from pathlib import Path
from typing import Final

from slmserve.config import available_cpus

_ONE_THREAD_BYTES: Final = 16 << 20
_SHARED_SCALE: Final = b"DynamicQuantize"
"""How the names of onnxruntime's operators begin that quantize all rows of a batch with one scale."""


def choose_threads(asked: int, *, model_bytes: int) -> int:
    """`asked`, or with 0 what suits the model: a small one's step ends before a second thread has woken."""
    return asked or (1 if model_bytes < _ONE_THREAD_BYTES else available_cpus())


def brief(error: Exception, most: int = 600) -> str:
    """The error's text on one line, at most `most` characters: it is about the model, never a prompt."""
    return " ".join(str(error).split())[:most]


def shares_scale(path: Path) -> bool:
    """Whether the ONNX graph takes the scale of its activations from all that one run computes.

    What such a model answers to one would depend on what others ask at the same moment, so it runs them
    one by one. OSError when `path` cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_SHARED_SCALE) >= 0
