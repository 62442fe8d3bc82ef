# SPDX-License-Identifier: Apache-2.0
"""Stop strings, detokenising, templates."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slmserve.errors import ApiError, StartError
from slmserve.stops import StopMatcher
from slmserve.template import build_template, load_template
from slmserve.tokenizer import Detokenizer, TextCodec, load_codec
from slmwire.reasons import Reason

_pieces = st.lists(st.text("ab<>|", max_size=4), max_size=12)


@settings(max_examples=300, deadline=None)
@given(pieces=_pieces, stops=st.lists(st.text("ab<>|", min_size=1, max_size=4), max_size=4))
def test_stop_strings_cut_like_a_search_in_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        # What a stream has shown never holds a stop string, nor a part of one that came true.
        assert not any(stop in out for stop in stops)
    out += matcher.flush()
    whole = "".join(pieces)
    if not any(stop in whole for stop in stops):
        assert out == whole
        assert not matcher.stopped
    else:
        assert matcher.stopped
        assert whole.startswith(out)
        assert any(whole[len(out) :].startswith(stop) for stop in stops)


def _byte_codec() -> TextCodec:
    """One token per byte: every character beyond ASCII takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer)


_CODEC = _byte_codec()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40).filter(lambda t: "\ufffd" not in t))
def test_streamed_text_is_the_text(text: str) -> None:
    detokenizer = Detokenizer(_CODEC)
    pieces = [detokenizer.push(token) for token in _CODEC.encode(text, add_special_tokens=False)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_end_as_replacements(tokens: list[int]) -> None:
    detokenizer = Detokenizer(_CODEC)
    text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert text.replace("\ufffd", "") == _CODEC.decode(tokens).replace("\ufffd", "")


def test_an_unfinished_character_comes_at_the_end() -> None:
    detokenizer = Detokenizer(_CODEC)
    first = _CODEC.encode("é", add_special_tokens=False)[0]
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_template_sees_messages_and_special_tokens() -> None:
    template = build_template(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}",
        {"bos_token": "<s>"},
    )
    text = template.render([{"role": "user", "content": "a <b> & {{ c }}"}])
    assert text == "<s>[user] a <b> & {{ c }}\n>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content.nothing }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_is_a_refusal(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        text = build_template(source, {}).render([{"role": "user", "content": "secret words"}])
        # The sandbox shows an unsafe attribute as undefined; undefined prints as nothing.
        assert text == ""
        raise ApiError(400, "nothing was leaked", param="messages")
    assert caught.value.status == 400
    assert "secret words" not in caught.value.message


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        (
            {"tokenizer_config.json": json.dumps({"chat_template": "A{{ eos_token }}", "eos_token": "E"})},
            "AE",
        ),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "default", "template": "D"}], "eos_token": {"content": "E"}}
                )
            },
            "D",
        ),
        ({"tokenizer_config.json": json.dumps({"chat_template": "A"}), "chat_template.jinja": "J"}, "J"),
    ],
)
def test_where_templates_come_from(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    template = load_template(tmp_path)
    assert (template.render([]) if template else None) == expected


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"chat_template": "{% if %}"}), "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_broken_template_is_unfit(tmp_path: Path, text: Any) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(StartError) as caught:
        load_template(tmp_path)
    assert caught.value.reason is Reason.UNFIT


def test_a_broken_tokenizer_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartError, match=r"tokenizer\.json"):
        load_codec(tmp_path)
