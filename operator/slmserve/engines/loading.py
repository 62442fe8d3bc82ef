# SPDX-License-Identifier: Apache-2.0
"""What the loaders of several engines have in common."""

from typing import Final

from slmserve.config import available_cpus

_ONE_THREAD_BYTES: Final = 16 << 20


def choose_threads(asked: int, *, model_bytes: int) -> int:
    """`asked`, or with 0 what suits the model: a small one's step ends before a second thread has woken."""
    return asked or (1 if model_bytes < _ONE_THREAD_BYTES else available_cpus())


def brief(error: Exception, most: int = 600) -> str:
    """The error's text on one line, at most `most` characters: it is about the model, never a prompt."""
    return " ".join(str(error).split())[:most]
