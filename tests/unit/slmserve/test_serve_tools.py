# SPDX-License-Identifier: Apache-2.0
"""Tool calls: what templates teach, what models write, what clients get."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models

from slmserve.answers import Answer, Ask
from slmserve.backend import EngineInfo
from slmserve.constraints import GrammarCompiler
from slmserve.generation import Finish, Step
from slmserve.parts import ToolFunction
from slmserve.sampling import SamplingParams
from slmserve.tokenizer import TextCodec, load_codec
from slmserve.toolparse import CallCollector, ToolParser
from slmserve.tools import ToolForm, call_identifier, find_form, tool_grammar
from tests.unit.slmserve.process import ORDERS, ServerProcess

_TEMPLATE = (
    "{% if tools %}<tool_call>{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|user|>' + m.content + '<|end|>' }}"
    "{% elif m.tool_calls %}{{ '<|assistant|>' + m.tool_calls[0].function.arguments.kind + '<|end|>' }}"
    "{% endif %}{% endfor %}<|assistant|>"
)
_BREW: Any = {
    "type": "function",
    "function": {
        "name": "brew",
        "description": "make a drink",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"enum": ["tea", "espresso"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}
_BELL: Any = {"type": "function", "function": {"name": "bell"}}
_MESSAGES: Any = [{"role": "user", "content": "one espresso to table two"}]


@pytest.fixture(scope="module")
def tool_client(orders_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    directory = tmp_path_factory.mktemp("tools")
    model = directory / "model"
    shutil.copytree(orders_dir, model)
    (model / "slm-manifest.json").unlink()
    (model / "chat_template.jinja").write_text(_TEMPLATE)
    with ServerProcess(model, directory, "--model", "orders", "--evaluate", "false") as server:
        server.wait_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def test_a_named_tool_is_called(tool_client: OpenAI) -> None:
    answer = tool_client.chat.completions.create(
        model="orders",
        messages=_MESSAGES,
        tools=[_BREW, _BELL],
        tool_choice={"type": "function", "function": {"name": "brew"}},
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "brew"
    assert json.loads(call.function.arguments)["kind"] in {"tea", "espresso"}
    reply: Any = [
        *_MESSAGES,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    after = tool_client.chat.completions.create(
        model="orders", messages=reply, tools=[_BREW], tool_choice="none", max_tokens=20
    )
    assert after.choices[0].message.tool_calls is None


def test_a_required_call_is_streamed(tool_client: OpenAI) -> None:
    ask: Any = {
        "model": "orders",
        "messages": _MESSAGES,
        "tools": [_BREW, _BELL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    [expected] = tool_client.chat.completions.create(**ask).choices[0].message.tool_calls or []
    name, arguments, finish, identifiers = "", "", None, set()
    for chunk in tool_client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        assert not choice.delta.content
        for part in choice.delta.tool_calls or []:
            assert part.index == 0
            identifiers |= {part.id} if part.id else set()
            assert part.function is not None
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        finish = choice.finish_reason or finish
    assert (name, arguments, finish) == (expected.function.name, expected.function.arguments, "tool_calls")
    assert len(identifiers) == 1


def test_the_clients_own_stream_puts_calls_together(tool_client: OpenAI) -> None:
    with tool_client.chat.completions.stream(
        model="orders", messages=_MESSAGES, tools=[_BREW], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.name == "brew"
    assert json.loads(call.function.arguments)["kind"] in {"tea", "espresso"}


def test_with_auto_the_model_may_just_answer(tool_client: OpenAI) -> None:
    answer = tool_client.chat.completions.create(
        model="orders", messages=_MESSAGES, tools=[_BREW], max_tokens=40
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_auto_with_a_schema_is_one_or_the_other(tool_client: OpenAI) -> None:
    answer = tool_client.chat.completions.create(
        model="orders",
        messages=_MESSAGES,
        tools=[_BREW],
        response_format={"type": "json_object"},
    )
    message = answer.choices[0].message
    assert message.tool_calls or isinstance(json.loads(message.content or ""), dict)


def test_a_model_without_tools_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="takes no tools") as caught:
        client.chat.completions.create(model="orders", messages=_MESSAGES, tools=[_BREW])
    assert caught.value.param == "tools"


def test_a_wrong_schema_of_a_tool_is_named(tool_client: OpenAI) -> None:
    wrong: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="nonsense") as caught:
        tool_client.chat.completions.create(
            model="orders", messages=_MESSAGES, tools=[wrong], tool_choice="required"
        )
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("{{ messages[0].content }}", None),
        ("{% if tools %}<tool_call>{% endif %}", ToolForm.HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", ToolForm.MISTRAL),
        ("{% if tools %}[TOOL_CALLS]f[ARGS]{% endif %}", ToolForm.MISTRAL_ARGS),
        ('{% if tools is not none %}{"name": f, "parameters": d}{% endif %}', ToolForm.LLAMA),
    ],
)
def test_the_form_comes_from_the_template(source: str, form: ToolForm | None) -> None:
    assert find_form(source) is form


_A, _B = '{"x": "}{\\"]"}', '{"y": [1, {"z": 2}]}'
_WRITTEN = [
    (ToolForm.HERMES, "hm ", f'<tool_call>\n{{"name": "f", "arguments": {_A}}}\n</tool_call>', [("f", _A)]),
    (
        ToolForm.HERMES,
        "",
        f'<tool_call>{{"name": "f", "arguments": {_A}}}</tool_call>\n<tool_call>\n'
        f'{{"name": "g", "arguments": {_B}}}\n</tool_call>\n',
        [("f", _A), ("g", _B)],
    ),
    (
        ToolForm.HERMES,  # no end of the first, no brace of the second
        "",
        f'<tool_call>{{"name": "f", "arguments": {_A}}}\n<tool_call>{{"name": "g", "arguments": {_B}'
        "</tool_call>",
        [("f", _A), ("g", _B)],
    ),
    (
        ToolForm.HERMES,
        "<tool_call>no call",
        f'<tool_call>{{"name": "f", "arguments": {_A}, "id": {{"}}": "}}"}}}}</tool_call>',
        [("f", _A)],
    ),
    (ToolForm.HERMES, "a < b <tool_ c", "", []),
    (ToolForm.HERMES, "<tool_call>no call</tool_call>", "", []),
    (ToolForm.LLAMA, "", f'{{"name": "f", "parameters": {_A}}}', [("f", _A)]),
    (
        ToolForm.LLAMA,
        "",
        f'<|python_tag|>{{"type": "function", "name": "f", "parameters": {_A}}}; '
        f'{{"name": "g", "parameters": {_B}}}',
        [("f", _A), ("g", _B)],
    ),
    (ToolForm.LLAMA, '{"table": 4, "name": "f"}', "", []),
    (ToolForm.LLAMA, "Just words.", "", []),
    (ToolForm.LLAMA, "{", "", []),
    (
        ToolForm.MISTRAL,
        "",
        f'[TOOL_CALLS][{{"name": "f", "arguments": {_A}}}, {{"name": "g", "arguments": {_B}, "id": "1"}}]',
        [("f", _A), ("g", _B)],
    ),
    (ToolForm.MISTRAL_ARGS, "", f"[TOOL_CALLS]f[ARGS]{_A}[TOOL_CALLS]g{_B}", [("f", _A), ("g", _B)]),
    (ToolForm.MISTRAL_ARGS, "", f"[TOOL_CALLS]f[CALL_ID]abc[ARGS]{_A}", [("f", _A)]),
]


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(_WRITTEN), cuts=st.lists(st.integers(0, 200), max_size=30))
def test_calls_are_found_however_the_text_is_cut(case: Any, cuts: list[int]) -> None:
    form, content, calls, expected = case
    text = content + calls
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert _read(form, (text[start:end] for start, end in itertools.pairwise(edges))) == (content, expected)


def _read(form: ToolForm, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls (name, arguments)."""
    parser, collector, said = ToolParser(form), CallCollector(), ""
    for piece in pieces:
        text, parts = parser.push(piece)
        said += text
        for part in parts:
            collector.add(part)
    said += parser.flush()
    return said, [(c["function"]["name"], c["function"]["arguments"]) for c in collector.calls]


_words = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}", "]", '"name"']
_words += [
    ": ",
    '"f", ',
    "x",
    " ",
    "; ",
    '{"name": "f", "arguments": {}',
    '{"name": "g", "parameters": {"a": 1}',
]


@settings(max_examples=300, deadline=None)
@given(form=st.sampled_from(ToolForm), pieces=st.lists(st.sampled_from(_words), max_size=20))
def test_whatever_a_model_writes_is_read_alike_in_any_pieces(form: ToolForm, pieces: list[str]) -> None:
    text = "".join(pieces)
    said, calls = _read(form, [text])
    assert (said, calls) == _read(form, pieces) == _read(form, text)
    if not calls:
        assert said == text


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (ToolForm.HERMES, '<tool_call>{"name": "f", "arguments": {}} so be it', "so be it"),
        (ToolForm.HERMES, 'a <tool_call>{"name": "f", "arguments": {}}</tool_call> b c', "a b c"),
        (ToolForm.LLAMA, '{"name": "f", "parameters": {}} hello world', "hello world"),
        (ToolForm.MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}] hello world', "hello world"),
    ],
)
def test_what_a_model_says_behind_a_call_is_content(form: ToolForm, text: str, expected: str) -> None:
    assert _read(form, text) == (expected, [("f", "{}")])


def test_text_that_is_almost_a_name_is_read_in_linear_time() -> None:
    parser = ToolParser(ToolForm.MISTRAL_ARGS)
    text = "[TOOL_CALLS]" + "[AAAA" * 100 + "!"
    assert parser.push(text)[0] + parser.flush() == text


async def test_special_tokens_that_mark_a_call_show_in_the_text() -> None:
    vocabulary = {character: index for index, character in enumerate("abc[]{}")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["[TOOL_CALLS]", "<pad>"])
    codec = TextCodec(tokenizer)
    ids = {text: token for token, text in codec.special_tokens.items()}
    ask = Ask(
        prompt=[0],
        max_tokens=9,
        sampling=SamplingParams(),
        end_tokens=frozenset(),
        markers={ids["[TOOL_CALLS]"]: "[TOOL_CALLS]"},
    )
    answer = Answer(ask, codec, None)
    tokens = [0, ids["<pad>"], ids["[TOOL_CALLS]"], 1, 2]
    for number, token in enumerate(tokens):
        finish = Finish.LENGTH if number == len(tokens) - 1 else None
        answer.generation.inbox(Step(answer.generation, token, finish, 0.0))
    assert "".join([piece.text async for piece in answer.pieces()]) == "a[TOOL_CALLS]bc"


def test_identifiers_suit_the_form() -> None:
    assert call_identifier(ToolForm.LLAMA) != call_identifier(ToolForm.LLAMA)
    assert len(call_identifier(ToolForm.MISTRAL)) == 9
    assert call_identifier(ToolForm.HERMES).startswith("call_")


@pytest.mark.parametrize("form", list(ToolForm))
async def test_what_a_grammar_allows_the_parser_reads(form: ToolForm) -> None:
    codec = load_codec(ORDERS / "v1-int4")
    engine = EngineInfo(name="e", version="1", slots=1, max_length=256, vocab_size=768)
    compiler = GrammarCompiler(codec, engine, frozenset({1}))
    tools = [ToolFunction.model_validate(tool["function"]) for tool in (_BREW, _BELL)]
    grammar = tool_grammar(form, tools, codec.special_tokens, most=None)
    generator = np.random.Generator(np.random.PCG64(5))
    for _ in range(5):
        constraint = await compiler.compile(grammar, param="tools")
        tokens: list[int] = []
        while len(tokens) < 300:
            mask = constraint.allowed()
            token = 1 if mask[1] else int(generator.choice(np.flatnonzero(mask)))
            constraint.accept(token)
            if token == 1:
                break
            tokens.append(token)
        parser, collector = ToolParser(form), CallCollector()
        content, parts = parser.push(codec.decode(tokens))
        for part in parts:
            collector.add(part)
        assert content + parser.flush() == ""
        assert collector.calls
        for call in collector.calls:
            arguments = json.loads(call["function"]["arguments"])
            assert (call["function"]["name"], set(arguments)) in [("brew", {"kind"}), ("bell", set())]


def test_special_tokens_are_written_as_tokens() -> None:
    tool = ToolFunction(name="f")
    assert "<[7]>" in tool_grammar(ToolForm.MISTRAL, [tool], {7: "[TOOL_CALLS]"}, most=1)
    assert "<[7]>" not in tool_grammar(ToolForm.MISTRAL, [tool], {}, most=1)
