# SPDX-License-Identifier: Apache-2.0
"""The script that a text is written in, by blocks of Unicode (Standard Annex 24, as far as it matters here).

A script says little of the language, but that it changes says much, and no model is needed to tell it.
"""

from bisect import bisect_right
from collections import Counter
from typing import Final

_LOOKED_AT: Final = 500
"""Characters from the begin; more tell no more."""
_BLOCKS: Final = (
    (0x0041, 0x024F, "latin"), (0x0370, 0x03FF, "greek"), (0x0400, 0x052F, "cyrillic"),
    (0x0590, 0x05FF, "hebrew"), (0x0600, 0x06FF, "arabic"), (0x0750, 0x077F, "arabic"),
    (0x08A0, 0x08FF, "arabic"), (0x0900, 0x097F, "devanagari"), (0x0E00, 0x0E7F, "thai"),
    (0x1100, 0x11FF, "hangul"), (0x1C80, 0x1C8F, "cyrillic"), (0x1E00, 0x1EFF, "latin"),
    (0x1F00, 0x1FFF, "greek"), (0x2C60, 0x2C7F, "latin"), (0x2DE0, 0x2DFF, "cyrillic"),
    (0x3040, 0x30FF, "kana"), (0x3130, 0x318F, "hangul"), (0x31F0, 0x31FF, "kana"),
    (0x3400, 0x4DBF, "han"), (0x4E00, 0x9FFF, "han"), (0xA640, 0xA69F, "cyrillic"),
    (0xA720, 0xA7FF, "latin"), (0xA8E0, 0xA8FF, "devanagari"), (0xA960, 0xA97F, "hangul"),
    (0xAC00, 0xD7FF, "hangul"), (0xF900, 0xFAFF, "han"), (0xFB00, 0xFB06, "latin"),
    (0xFB1D, 0xFB4F, "hebrew"), (0xFB50, 0xFDFF, "arabic"), (0xFE70, 0xFEFE, "arabic"),
    (0xFF21, 0xFF5A, "latin"), (0xFF66, 0xFF9F, "kana"), (0x20000, 0x3FFFF, "han"),
)  # fmt: skip
_STARTS: Final = tuple(first for first, _, _ in _BLOCKS)


def main_script(text: str) -> str:
    """Script of most letters at the begin of `text`: one of slmwire.metrics.SCRIPTS."""
    begin = text[:_LOOKED_AT]
    if begin.isascii():
        return "latin" if any(map(str.isalpha, begin)) else "none"
    counts = Counter(_script_of(ord(letter)) for letter in begin if letter.isalpha())
    if not counts:
        return "none"
    # Japanese is told by its kana, of which a text has few beside the han.
    if counts["kana"]:
        counts["kana"] += counts.pop("han", 0)
    return min(counts, key=lambda script: (-counts[script], script))


def _script_of(code: int) -> str:
    at = bisect_right(_STARTS, code) - 1
    return _BLOCKS[at][2] if at >= 0 and code <= _BLOCKS[at][1] else "other"
