# SPDX-License-Identifier: Apache-2.0
"""Log probabilities and several choices, as the openai client sees them."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slmserve.answers import Ask, Piece, build_deliver, submit
from slmserve.generation import TokenLogprobs
from slmserve.logprobs import Scored, to_chat_logprobs, to_completion_logprobs
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler
from slmserve.tokenizer import TextCodec, load_codec
from tests.unit.slmserve.doubles import END, VOCAB, ScriptedEngine

_MESSAGES: Any = [{"role": "user", "content": "two espressos and a still water to table four"}]


def test_chat_logprobs_spell_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="orders", messages=_MESSAGES, logprobs=True, top_logprobs=4)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert answer.usage is not None
    # The end token is generated, and is no part of the text.
    assert len(content) == answer.usage.completion_tokens - 1
    spelled = b"".join(bytes(entry.bytes or []) for entry in content)
    assert spelled.decode() == "".join(entry.token for entry in content) == choice.message.content
    for entry in content:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 4
        assert tops == sorted(tops, reverse=True)
        # The greedy answer is the likeliest one.
        assert entry.top_logprobs[0].token == entry.token
        assert tops[0] == pytest.approx(entry.logprob)
        assert sum(math.exp(value) for value in tops) <= 1 + 1e-6


def test_a_stream_has_the_same_logprobs(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="orders", messages=_MESSAGES, logprobs=True, top_logprobs=2, stop='"items"'
    )
    stream = client.chat.completions.create(
        model="orders", messages=_MESSAGES, logprobs=True, top_logprobs=2, stop='"items"', stream=True
    )
    streamed: list[Any] = []
    for chunk in stream:
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []
    assert whole.choices[0].logprobs is not None
    assert [entry.token for entry in streamed] == [e.token for e in whole.choices[0].logprobs.content or []]


@pytest.mark.parametrize("odd", [math.nan, -math.inf, -1e30])
def test_no_log_probability_is_no_number(orders_dir: Path, odd: float) -> None:
    codec = load_codec(orders_dir)
    entry = Scored(token=50, start=0, logprobs=TokenLogprobs(chosen=odd, top=((51, odd),)))
    for form in (to_chat_logprobs, to_completion_logprobs):
        assert json.dumps(form([entry], codec), allow_nan=False).count("-9999.0") >= 2


def test_without_asking_there_are_none(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="orders", messages=_MESSAGES, max_tokens=3)
    assert answer.choices[0].logprobs is None


def test_logprobs_of_a_completion(client: OpenAI) -> None:
    prompt = f"<|user|>{_MESSAGES[0]['content']}<|end|><|assistant|>"
    answer = client.completions.create(model="orders", prompt=prompt, logprobs=2, max_tokens=100)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs and logprobs.text_offset
    assert "".join(logprobs.tokens) == choice.text
    for token, value, top, offset in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True
    ):
        assert top[token] == value
        assert 2 <= len(top) <= 3
        assert choice.text[offset:].startswith(token)
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.completions.create(model="orders", prompt=prompt, logprobs=6)


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client: OpenAI, stream: bool) -> None:
    ask: Any = {
        "model": "orders",
        "messages": [{"role": "user", "content": "quantum harpsichord? why, never! 8 8 8"}],
        "n": 3,
        "temperature": 2.0,
        "seed": 11,
        "max_tokens": 30,
        "logprobs": True,
    }
    whole = client.chat.completions.create(**ask)
    texts = [choice.message.content or "" for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 30
    alone = client.chat.completions.create(**ask | {"n": 1})
    assert alone.choices[0].message.content == texts[0]
    assert alone.usage is not None
    assert alone.usage.prompt_tokens == whole.usage.prompt_tokens
    if stream:
        chunks = list(
            client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        )
        streamed = ["", "", ""]
        finishes: dict[int, str] = {}
        for chunk in chunks[:-1]:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    finishes[choice.index] = choice.finish_reason
        assert streamed == texts
        assert sorted(finishes) == [0, 1, 2]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_prompts(client: OpenAI) -> None:
    prompts = [f"<|user|>{text}<|end|><|assistant|>" for text in ("one espresso", "two teas to table six")]
    both = client.completions.create(model="orders", prompt=prompts, max_tokens=60)
    alone = [client.completions.create(model="orders", prompt=p, max_tokens=60) for p in prompts]
    assert [c.text for c in both.choices] == [a.choices[0].text for a in alone]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)
    with pytest.raises(openai.BadRequestError, match="at most 36 at once") as caught:
        client.completions.create(model="orders", prompt=prompts * 4, n=8)
    assert caught.value.param == "n"


def test_cached_tokens_are_told(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="orders", messages=_MESSAGES, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert 0 <= cached < answer.usage.prompt_tokens


def test_a_token_is_the_bytes_it_stands_for(orders_dir: Path) -> None:
    codec = load_codec(orders_dir)
    assert codec.token_bytes(1) == b"<|end|>"
    assert codec.token_bytes(10**6) == b""
    assert 1 in codec.special_tokens


_ALPHABET = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_byte_level_pieces_spell_the_text(text: str) -> None:
    tokenizer = Tokenizer(models.BPE(vocab=_ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    codec = TextCodec(tokenizer)
    tokens = codec.encode(text, add_special_tokens=False)
    assert b"".join(map(codec.token_bytes, tokens)) == text.encode()


def test_sentencepiece_pieces_have_spaces_and_bytes() -> None:
    vocabulary = {"<unk>": 0, "▁tea": 1, "<0xE2>": 2, "s": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    codec = TextCodec(tokenizer)
    assert [codec.token_bytes(token) for token in (1, 2, 3)] == [b" tea", b"\xe2", b"s"]


def test_a_file_that_asks_to_cut_prompts_does_not() -> None:
    tokenizer = Tokenizer(models.BPE(vocab=_ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert len(TextCodec(tokenizer).encode("abcdef", add_special_tokens=False)) == 6


def _letters() -> TextCodec:
    """Token i is the letter i of the printable range: the scripted engine's tokens as text."""
    vocabulary = {chr(33 + index): index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer)


async def _pieces(stops: tuple[str, ...], count: int) -> list[Piece]:
    deliver = build_deliver(asyncio.get_running_loop())
    scheduler = Scheduler(ScriptedEngine(), max_queue=1, deliver=deliver, gather_seconds=0)
    scheduler.start()
    ask = Ask(
        prompt=[1, 2, 3],
        max_tokens=count,
        sampling=SamplingParams(),
        end_tokens=frozenset({END}),
        stops=stops,
        top_logprobs=1,
    )
    answer = submit(scheduler, ask, _letters(), None)
    try:
        return [piece async for piece in answer.pieces()]
    finally:
        scheduler.close()


async def test_scores_never_run_ahead_of_the_text() -> None:
    whole = await _pieces((), 20)
    text = "".join(piece.text for piece in whole)
    stopped = await _pieces((text[12:14],), 20)
    shown = "".join(piece.text for piece in stopped)
    assert shown == text[: text.index(text[12:14])]
    scored = [entry for piece in stopped for entry in piece.scored]
    assert [entry.start for entry in scored] == list(range(len(shown)))
    told = 0
    for piece in stopped:
        told += len(piece.text)
        assert all(entry.start < told for entry in piece.scored)
