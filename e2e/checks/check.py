# SPDX-License-Identifier: Apache-2.0
"""One check."""

from collections.abc import Callable
from dataclasses import dataclass


class CheckError(Exception):
    """The check failed; the message says what is wrong and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`run` returns what it looked at, in a few words, or raises CheckError."""

    name: str
    run: Callable[[], str]
