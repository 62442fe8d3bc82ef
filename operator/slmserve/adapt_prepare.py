# SPDX-License-Identifier: Apache-2.0
"""From a folder of examples to token ids to train on, and cases to judge by.

Which examples are held back is decided by a hash of their messages alone, so an example is never on one side
in this training and on the other in the next one. Of few examples a larger share is held back than the order
says: a judgement by fewer than ten cases says nothing.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from slmserve.config import ServerConfig
from slmserve.errors import ApiError, StartError
from slmserve.export import ExportConfig, load_export
from slmserve.template import ChatTemplate, load_template
from slmserve.tokenizer import TextCodec, load_codec
from slmwire.examples import expiry_of
from slmwire.jobs import TRAIN_TOKENS_FILE, AdapterReport, TrainOrder, TrainOutcome
from slmwire.paths import GOLDEN_FILE
from slmwire.reasons import Reason

_log = logging.getLogger(__name__)
LEAST_HELD_OUT: Final = 10
_SAFE_HELD_OUT: Final = 15
"""Expected number where there are just enough to train on, so that LEAST_HELD_OUT are hardly ever missed."""
MOST_HELD_OUT: Final = 500
"""More make a judgement longer and no better."""
_MOST_LINE: Final = 1 << 20
TOKENS_NAME: Final = Path(TRAIN_TOKENS_FILE).name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class ExampleMessage(_Part):
    """One message as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(_Part):
    """One line of a file of examples."""

    messages: Annotated[tuple[ExampleMessage, ...], Field(min_length=1)]
    expected: str
    at: Annotated[float, Field(allow_inf_nan=False)]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The messages as JSON has them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    @property
    def key(self) -> bytes:
        """Digest of the messages."""
        text = json.dumps([[m.role, m.content] for m in self.messages], separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    @property
    def answer(self) -> str:
        """What the model should write; what people leave around it is no part of it."""
        return self.expected.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Examples, one for each conversation, and how many lines were left out."""

    examples: tuple[Example, ...]
    broken: int = 0
    old: int = 0
    replaced: int = 0


def collect(folder: Path, *, retention_seconds: float, now: float) -> Collected:
    """Read what may still be used of a folder; of the same messages the latest correction counts."""
    latest: dict[bytes, Example] = {}
    broken = old = replaced = 0
    for line in _lines(folder, now):
        try:
            if len(line) > _MOST_LINE:
                raise ValueError
            example = Example.model_validate_json(line)
        except ValueError:
            broken += 1
            continue
        if not example.answer:
            broken += 1
        elif example.at <= now - retention_seconds:
            old += 1
        else:
            before = latest.get(example.key)
            replaced += before is not None
            if before is None or before.at <= example.at:
                latest[example.key] = example
    examples = tuple(latest[key] for key in sorted(latest))
    return Collected(examples=examples, broken=broken, old=old, replaced=replaced)


def _lines(folder: Path, now: float) -> Iterator[bytes]:
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        expires_at = expiry_of(path.name)
        if expires_at is None or expires_at <= now or path.is_symlink() or not path.is_file():
            continue
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # it expired just now
            continue
        yield from (line for line in lines if line.strip())


def share_of(order: TrainOrder) -> float:
    """Share of the examples that is held back."""
    return max(order.held_out_share, _SAFE_HELD_OUT / (_SAFE_HELD_OUT + order.min_examples))


def split(examples: Sequence[Example], order: TrainOrder) -> tuple[list[Example], list[Example]]:
    """(to train on, held back), both in the order of their digests."""
    share = share_of(order)
    held = [e for e in examples if int.from_bytes(e.key[:8], "big") < share * 2.0**64]
    kept_back = {e.key for e in held}
    return [e for e in examples if e.key not in kept_back], held[:MOST_HELD_OUT]


class Renderer:
    """Examples as token ids, in the model's own template."""

    def __init__(self, codec: TextCodec, template: ChatTemplate, export: ExportConfig, context: int) -> None:
        """`context` in tokens, prompt and answer together."""
        self._codec, self._template, self._export, self._context = codec, template, export, context
        self._end = self._find_end()

    def render(self, example: Example) -> dict[str, list[int]] | None:
        """`prompt` and `answer` with its end token; None for what is refused, or does not fit the context."""
        try:
            text = self._template.render(example.rows)
            prompt = self._encode(text)
            whole = self._encode(text + example.answer)
        except ApiError:
            return None
        # As one text where that has the prompt's tokens: some tokenizers begin every text with a space.
        cut = len(prompt)
        answer = whole[cut:] if whole[:cut] == prompt else self._encode(example.answer)
        answer.append(self._end)
        tokens = [*prompt, *answer]
        if not prompt or len(tokens) > self._context or max(tokens) >= self._export.vocab_size:
            return None
        return {"prompt": prompt, "answer": answer}

    def _encode(self, text: str) -> list[int]:
        return self._codec.encode(text, add_special_tokens=False)

    def _find_end(self) -> int:
        """The end token that the template has behind an answer, where there are several."""
        ends = self._export.end_tokens
        asked: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
        try:
            begin = self._template.render(asked)
            whole = self._template.render([*asked, {"role": "assistant", "content": "b"}])
        except ApiError:
            return min(ends)
        behind = whole.removeprefix(begin).removeprefix("b") if whole.startswith(f"{begin}b") else ""
        return next((token for token in self._encode(behind.lstrip())[:1] if token in ends), min(ends))


def build_renderer(config: ServerConfig) -> Renderer:
    """Raises StartError for a model that cannot be trained on messages."""
    export = load_export(config.model_dir)
    template = load_template(config.model_dir)
    if template is None:
        raise StartError(Reason.UNFIT, "the model has no chat template; adapters are trained on chats")
    context = min(config.context_length or export.context_length, export.context_length)
    return Renderer(load_codec(config.model_dir), template, export, context)


def prepare(
    config: ServerConfig,
    order: TrainOrder,
    *,
    examples: Path,
    work: Path,
    held_out_dir: Path,
    now: float,
) -> AdapterReport | None:
    """Write tokens.jsonl below `work`, and golden.jsonl, which alone has text, below `held_out_dir`.

    A report only where there are too few examples.

    Raises StartError for a model that cannot be trained on messages, OSError where files cannot be written.
    """
    renderer = build_renderer(config)
    found = collect(examples, retention_seconds=order.retention_seconds, now=now)
    rendered = {example.key: tokens for example in found.examples if (tokens := renderer.render(example))}
    train, held = split([example for example in found.examples if example.key in rendered], order)
    fields = {
        "examples": len(train),
        "held_out": len(held),
        "broken": found.broken,
        "old": found.old,
        "replaced": found.replaced,
        "unfit": len(found.examples) - len(rendered),
    }
    _log.info("examples read", extra={"fields": fields})
    if len(train) < order.min_examples or len(held) < LEAST_HELD_OUT:
        return AdapterReport(
            outcome=TrainOutcome.TOO_FEW_EXAMPLES,
            message=(
                f"{len(train)} of {order.min_examples} examples to train on and {len(held)} of"
                f" {LEAST_HELD_OUT} to judge by; {fields['broken']} were broken, {fields['old']} too old,"
                f" {fields['unfit']} did not fit the model"
            ),
            examples=len(train),
            held_out=len(held),
        )
    _write(work / TOKENS_NAME, [rendered[example.key] for example in train])
    _write(held_out_dir / GOLDEN_FILE, [_case(example) for example in held])
    return None


def _case(example: Example) -> dict[str, Any]:
    return {
        "messages": example.rows,
        "expected": example.answer,
        "match": "json" if _is_json(example.answer) else "exact",
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _write(path: Path, rows: Sequence[Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
