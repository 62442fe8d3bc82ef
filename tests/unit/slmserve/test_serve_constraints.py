# SPDX-License-Identifier: Apache-2.0
"""Answers that follow a schema, whatever the model would have said."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, models

from slmserve import constraints
from slmserve.backend import EngineInfo
from slmserve.constraints import GrammarCompiler, json_grammar
from slmserve.errors import ApiError
from slmserve.tokenizer import TextCodec, load_codec
from tests.unit.slmserve.process import ORDERS, ServerProcess

_MESSAGES: Any = [{"role": "user", "content": "two espressos and a still water to table four"}]
_VOCAB, _END = 768, 1


class Drink(BaseModel):
    name: str
    hot: bool


class Bill(BaseModel):
    table: int
    drinks: list[Drink]


def _compiler(end_tokens: frozenset[int] = frozenset({_END})) -> GrammarCompiler:
    engine = EngineInfo(name="e", version="1", slots=1, max_length=256, vocab_size=_VOCAB)
    return GrammarCompiler(load_codec(ORDERS / "v1-int4"), engine, end_tokens)


def test_an_answer_follows_a_schema_that_the_model_never_saw(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1}},
        "required": ["mood", "stars"],
        "additionalProperties": False,
    }
    ask: Any = {
        "model": "orders",
        "messages": _MESSAGES,
        "max_tokens": 60,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "m", "schema": schema, "strict": True},
        },
    }
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    text = answer.choices[0].message.content or ""
    if answer.choices[0].finish_reason == "stop":
        jsonschema.validate(json.loads(text), schema)
    assert text.startswith("{")
    streamed = "".join(
        c.choices[0].delta.content or "" for c in client.chat.completions.create(**ask, stream=True)
    )
    assert streamed == text


def test_a_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="orders", messages=_MESSAGES, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_the_clients_own_parsing(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="orders", messages=_MESSAGES, response_format=Bill, temperature=1.0, seed=3
    )
    assert isinstance(answer.choices[0].message.parsed, Bill)


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "https://example.com/schema"}, "retrieving"),
        ({"type": "string", "pattern": "(?=x)y"}, "look-around"),
        ({"not": {"type": "object"}}, "not"),
        ({"properties": 5}, "properties"),
        ({"type": "string", "enum": ["x" * 70_000]}, "larger than"),
    ],
)
def test_a_wrong_schema_says_what_is_wrong(
    client: OpenAI, orders_server: ServerProcess, schema: Any, part: str
) -> None:
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "wrong", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=part) as caught:
        client.chat.completions.create(model="orders", messages=_MESSAGES, response_format=wrong)
    assert caught.value.param == "response_format"
    assert "start:" not in str(caught.value)
    assert "nonsense" not in orders_server.log_file.read_text()


async def test_a_hostile_schema_is_given_up_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constraints, "_CPU_SECONDS", 1)
    monkeypatch.setattr(constraints, "_WALL_SECONDS", 60.0)
    parts = [{"type": "string", "pattern": f".*{chr(97 + i)}.{{{i * 7}}}.*"} for i in range(26)]
    compiler = _compiler()
    hostile = asyncio.create_task(compiler.compile(json_grammar({"allOf": parts}), param="p"))
    await asyncio.sleep(0)
    assert (await compiler.compile(json_grammar({"type": "object"}), param="p")).allowed().any()
    assert not hostile.done()
    for attempt in range(2):
        with pytest.raises(ApiError) as caught:
            await (compiler.compile(json_grammar({"allOf": parts}), param="p") if attempt else hostile)
        assert (caught.value.status, caught.value.code) == (400, "schema_too_complex")
    assert ".{175}" not in caught.value.message + caplog.text


_schemas = st.recursive(
    st.one_of(
        st.sampled_from(
            [{"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -9, "maximum": 9}]
        ),
        st.lists(st.sampled_from('abcé{"\\'), min_size=1, max_size=3, unique=True).map(lambda v: {"enum": v}),
    ),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(
            lambda p: {"type": "object", "properties": p, "required": [*p], "additionalProperties": False}
        ),
        # No `maxItems`: that would be compiled in a process of its own each time.
        inner.map(lambda i: {"type": "array", "prefixItems": [i, i], "items": False}),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def shared() -> tuple[GrammarCompiler, TextCodec]:
    return _compiler(), load_codec(ORDERS / "v1-int4")


@settings(max_examples=100, deadline=None)
@given(schema=_schemas, seed=st.integers(0, 2**32))
def test_any_walk_through_the_mask_is_valid(
    shared: tuple[GrammarCompiler, TextCodec], schema: dict[str, Any], seed: int
) -> None:
    compiler, codec = shared
    constraint = asyncio.run(compiler.compile(json_grammar(schema), param="response_format"))
    generator = np.random.Generator(np.random.PCG64(seed))
    tokens: list[int] = []
    for _ in range(400):
        mask = constraint.allowed()
        assert mask.shape == (_VOCAB,)
        token = _END if mask[_END] else int(generator.choice(np.flatnonzero(mask)))
        constraint.accept(token)
        if token == _END:
            break
        tokens.append(token)
    else:
        return
    jsonschema.validate(json.loads(codec.decode(tokens)), schema)


async def test_copies_of_one_grammar_do_not_disturb_each_other() -> None:
    compiler = _compiler()
    grammar = json_grammar({"enum": ["a"]})
    first, second = [await compiler.compile(grammar, param="p") for _ in range(2)]
    token = int(np.flatnonzero(first.allowed())[0])
    first.accept(token)
    assert np.array_equal(second.allowed(), (await compiler.compile(grammar, param="p")).allowed())


async def test_few_grammars_are_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "_MOST_WAITING", 2)
    compiler = _compiler()
    grammars = [json_grammar({"type": "string", "pattern": f"^a{{{n}}}$"}) for n in range(1, 6)]
    results = await asyncio.gather(
        *(compiler.compile(grammar, param="p") for grammar in grammars), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, ApiError)]
    assert [error.status for error in refused] == [429] * 3
    assert (await compiler.compile(grammars[-1], param="p")).allowed().any()


async def test_a_busy_device_says_nothing_about_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = _compiler()
    grammar = json_grammar({"type": "string", "pattern": "^tea$"})
    monkeypatch.setattr(constraints, "_WALL_SECONDS", 0.0)
    with pytest.raises(ApiError) as caught:
        await compiler.compile(grammar, param="p")
    assert caught.value.status == 429
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent")
        with pytest.raises(ApiError) as caught:
            await compiler.compile(grammar, param="p")
        assert caught.value.status == 429
    assert (await compiler.compile(grammar, param="p")).allowed().any()


async def test_what_the_vocabulary_cannot_write_ends_the_answer() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={character: n for n, character in enumerate('ab"')}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    engine = EngineInfo(name="e", version="1", slots=1, max_length=9, vocab_size=4)
    tokenizer.add_special_tokens(["<end>"])
    compiler = GrammarCompiler(TextCodec(tokenizer), engine, frozenset({3}))
    constraint = await compiler.compile(json_grammar({"const": "é"}), param="p")
    for _ in range(3):
        [token, *_] = np.flatnonzero(constraint.allowed()).tolist()
        constraint.accept(token)
    assert constraint.failed
    assert token == 3


async def test_what_was_refused_is_refused_again_without_work() -> None:
    compiler = _compiler()
    messages = []
    for param in ("response_format", "tools"):
        with pytest.raises(ApiError) as caught:
            await compiler.compile(json_grammar({"type": "string", "pattern": "("}), param=param)
        messages.append(caught.value.message.removeprefix(f"'{param}'"))
    assert messages[0] == messages[1]


async def test_a_tokenizer_that_the_library_cannot_take_is_named() -> None:
    tokenizer = Tokenizer(models.WordLevel({"tea": 0, "<unk>": 1}, unk_token="<unk>"))
    engine = EngineInfo(name="e", version="1", slots=1, max_length=9, vocab_size=2)
    compiler = GrammarCompiler(TextCodec(tokenizer), engine, frozenset({1}))
    with pytest.raises(ApiError) as caught:
        await compiler.compile(json_grammar({"type": "object"}), param="response_format")
    assert "tokenizer" in caught.value.message


async def test_a_token_that_was_not_allowed_ends_the_answer() -> None:
    constraint = await _compiler().compile(json_grammar({"type": "object"}), param="p")
    constraint.accept(int(np.flatnonzero(~constraint.allowed())[9]))
    assert constraint.failed
    assert np.flatnonzero(constraint.allowed()).tolist() == [_END]


async def test_a_model_without_an_end_cannot_be_constrained() -> None:
    with pytest.raises(ApiError) as caught:
        await _compiler(frozenset()).compile(json_grammar({"type": "object"}), param="response_format")
    assert "eos_token_id" in caught.value.message


def test_nothing_heavy_is_imported_for_plain_answers() -> None:
    code = "import sys, slmserve.app, slmserve.__main__; sys.exit('llguidance' in sys.modules)"
    path = str(Path(__file__).parents[3] / "operator")
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0
