# SPDX-License-Identifier: Apache-2.0
"""What is noticed of requests and answers: counts and histograms, never a text.

Nothing here keeps a word: a prompt becomes a length, a script and a count of tokens, an answer a length, an
end, and whether it begins like a refusal.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.config import PHRASE_MARKS
from slmserve.drift import DriftGauge
from slmserve.metrics import LENGTH_BUCKETS, Metrics
from slmserve.scripts import main_script
from slmserve.tokenizer import TextCodec
from slmwire.metrics import DRIFT_SIGNALS, SCRIPT_LEAST, SCRIPTS

FINISHES: Final = ("stop", "length", "tool_calls")
BEGIN_LETTERS: Final = 200
"""Of an answer: what a refusal is told by."""
_FALLBACK_SHARES: Final = (0.001, 0.01, 0.03, 0.1, 0.3)
_MOST_TOKENS: Final = 2048
"""Of a prompt that are looked at for fallback tokens; the last ones are what is new in a conversation."""
_CLASSES: Final = {
    "prompt_tokens": len(LENGTH_BUCKETS) + 1,
    "answer_tokens": len(LENGTH_BUCKETS) + 1,
    "script": len(SCRIPTS),
    "finish": len(FINISHES),
    "fallback": len(_FALLBACK_SHARES) + 1,
    "feedback": 3,
}
_SPACES: Final = re.compile(r"\s+")
_QUOTES: Final = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})


class Signals:
    """Counts for one server; used from the event loop only."""

    def __init__(self, metrics: Metrics, refusal_phrases: Sequence[str] = ()) -> None:
        self._metrics = metrics
        self._phrases = tuple(_normalise(phrase) for phrase in refusal_phrases)
        self._gauges = {signal: DriftGauge(_CLASSES[signal]) for signal in DRIFT_SIGNALS}
        self._scripts: dict[str, int] = {}
        if self._phrases:
            metrics.begin_refusals()

    def note_prompt(self, tokens: Sequence[int] | NDArray[np.int64], text: str, codec: TextCodec) -> None:
        """One prompt was accepted; `text` is what the user wrote last, empty where it is not known."""
        self._metrics.observe_prompt(len(tokens))
        self._gauges["prompt_tokens"].observe(_length_class(len(tokens)))
        if text:
            script = main_script(text)
            self._gauges["script"].observe(SCRIPTS.index(script))
            self._scripts[script] = self._scripts.get(script, 0) + 1
            self._metrics.count_script(script if self._scripts[script] > SCRIPT_LEAST else "other")
        if codec.fallback_tokens:
            looked_at = tokens[-_MOST_TOKENS:]
            plain = looked_at.tolist() if isinstance(looked_at, np.ndarray) else looked_at
            lacking = sum(map(codec.fallback_tokens.__contains__, plain))
            self._metrics.count_fallback(lacking)
            share = lacking / max(1, len(looked_at))
            self._gauges["fallback"].observe(bisect_right(_FALLBACK_SHARES, share))

    def note_answer(self, *, finish: str, tokens: int, begin: str) -> None:
        """One whole answer; `begin` are its first `BEGIN_LETTERS` letters."""
        self._metrics.observe_answer(finish, tokens)
        self._gauges["answer_tokens"].observe(_length_class(tokens))
        self._gauges["finish"].observe(FINISHES.index(finish))
        if self._phrases:
            self._metrics.count_refusal_check("true" if self._refuses(begin) else "false")

    def note_judgement(self, score: float) -> None:
        """One judgement of -1..1."""
        self._gauges["feedback"].observe(2 if score > 0 else 0 if score < 0 else 1)

    def show_drift(self) -> None:
        """Bring the metrics up to date with every signal that can be told."""
        for signal, gauge in self._gauges.items():
            drift = gauge.read()
            if drift is not None:
                self._metrics.show_drift(signal, index=drift.index, samples=drift.samples)

    def _refuses(self, begin: str) -> bool:
        return _normalise(begin).startswith(self._phrases)


def _length_class(tokens: int) -> int:
    return bisect_right(LENGTH_BUCKETS, tokens)


def _normalise(text: str) -> str:
    """Case, kinds of quotes and spaces are no difference; marks before the first letter are none either."""
    plain = _SPACES.sub(" ", text.translate(_QUOTES)).casefold()
    return plain.lstrip(PHRASE_MARKS)


class AnswerWatch:
    """Sees the text of one answer go by and notes it at its end."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._begin = ""

    def see(self, text: str, finish: str | None, *, tokens: int) -> None:
        """The next piece; with `finish` it is the last."""
        if len(self._begin) < BEGIN_LETTERS:
            self._begin += text[: BEGIN_LETTERS - len(self._begin)]
        if finish is not None:
            self._signals.note_answer(finish=finish, tokens=tokens, begin=self._begin)
            self._begin = ""
