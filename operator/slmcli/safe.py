# SPDX-License-Identifier: Apache-2.0
"""Texts from the cluster, made harmless for a terminal.

A node, a server of models or whoever may write a spec chooses what stands in messages. Escape sequences in
them could move the cursor, rewrite what stands above or set the window's title.
"""

import unicodedata
from typing import Any, Final

_DROPPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Control, format (also those that reverse the direction), surrogate, private and unassigned characters."""
_DEEPEST: Final = 64


def clean(text: str) -> str:
    """`text` in one line and without characters that a terminal acts on."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_clean_character(character) for character in text)


def _clean_character(character: str) -> str:
    if character in "\n\t\r":
        return " "
    return "" if unicodedata.category(character) in _DROPPED else character


def clean_lines(text: str) -> str:
    """`text` with its line breaks and tabs, and without characters that a terminal acts on otherwise."""
    return "".join(
        character if character in "\n\t" else "" if unicodedata.category(character) in _DROPPED else character
        for character in text
    )


def clean_tree(value: Any, depth: int = 0) -> Any:
    """A JSON value with every text in it cleaned, keys too; what lies deeper than 64 levels is left out."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict | list) and depth >= _DEEPEST:
        return None
    if isinstance(value, dict):
        return {clean(str(key)): clean_tree(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean_tree(inner, depth + 1) for inner in value]
    return value
