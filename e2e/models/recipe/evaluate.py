# SPDX-License-Identifier: Apache-2.0
"""Greedy answers of an exported model on plain onnxruntime, and how many are exactly right. No torch."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from e2e.models.recipe.data import Example
from e2e.models.recipe.schema import CommandError, parse_command
from e2e.models.recipe.tokenizer import END_ID, prompt_ids
from e2e.models.recipe.versions import CONTEXT_TOKENS

THREADS: Final = 2
BATCH: Final = 32

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Shares of `cases` whose answer is exactly right, and whose answer is a valid command at all."""

    cases: int
    exact: float
    well_formed: float
    seconds: float
    """Wall time, sessions' start excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A case that was answered wrongly."""

    text: str
    expected: str
    answer: str


class GreedyModel:
    """A genai-builder export, its tokenizer, and one key-value cache shared by past and present."""

    def __init__(self, directory: Path) -> None:
        decoder = json.loads((directory / "genai_config.json").read_text())["model"]["decoder"]
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        # Spinning threads starve whatever else runs on a small machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        layers = range(decoder["num_hidden_layers"])
        self._names = [f"{layer}.{kind}" for layer in layers for kind in ("key", "value")]
        self._cache_shape = (decoder["num_key_value_heads"], CONTEXT_TOKENS, decoder["head_size"])

    def answer(self, prompts: Ids) -> list[str]:
        """The greedy answers to `prompts` [rows, length], all of one length."""
        rows, length = prompts.shape
        cache = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, *self._cache_shape), np.float32))
            for name in self._names
        }
        ids, ended = prompts, np.zeros(rows, bool)
        produced: list[list[int]] = [[] for _ in range(rows)]
        for total in range(length, CONTEXT_TOKENS):
            ids = self._step(ids, total, cache)
            for row in np.flatnonzero(~ended):
                token = int(ids[row, 0])
                ended[row] = token == END_ID
                produced[row] += [] if ended[row] else [token]
            if ended.all():
                break
        return [self.tokenizer.decode(row, skip_special_tokens=False) for row in produced]

    def _step(self, ids: Ids, total: int, cache: dict[str, Any]) -> Ids:
        """Append `ids` [rows, new] to the cache, now `total` long; the most likely next ids [rows, 1]."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("attention_mask", np.ones((len(ids), total), np.int64))
        for name in self._names:
            binding.bind_ortvalue_input(f"past_key_values.{name}", cache[name])
            binding.bind_ortvalue_output(f"present.{name}", cache[name])
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        best: Ids = logits[:, -1].argmax(-1).astype(np.int64)[:, None]
        return best


def assess(directory: Path, examples: Sequence[Example]) -> tuple[Score, list[Miss]]:
    """Score the export in `directory` on `examples`; exact means equal text."""
    model = GreedyModel(directory)
    started = time.monotonic()
    misses: list[Miss] = []
    valid = 0
    for batch, prompts in _batches(model.tokenizer, examples):
        for example, answer in zip(batch, model.answer(prompts), strict=True):
            valid += _is_command(answer)
            if answer != example.target:
                misses.append(Miss(text=example.text, expected=example.target, answer=answer))
    count = len(examples)
    return Score(
        cases=count,
        exact=round(1 - len(misses) / count, 4),
        well_formed=round(valid / count, 4),
        seconds=round(time.monotonic() - started, 1),
    ), misses


def _batches(tokenizer: Tokenizer, examples: Sequence[Example]) -> Iterator[tuple[list[Example], Ids]]:
    """Examples with prompts of one length, so that a batch needs no padding: [at most BATCH, length]."""
    by_length: dict[int, list[tuple[Example, list[int]]]] = defaultdict(list)
    for example in examples:
        ids = prompt_ids(tokenizer, example.text)
        by_length[len(ids)].append((example, ids))
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            yield [example for example, _ in part], np.array([ids for _, ids in part], np.int64)


def _is_command(text: str) -> bool:
    try:
        parse_command(text)
    except CommandError:
        return False
    return True
