# SPDX-License-Identifier: Apache-2.0
"""Drift on the device: sure of a shift, quiet without one, and nothing of what was written."""

import json
import random

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models

from slmops.api.feedback import FeedbackPolicy
from slmserve.config import ConfigError, Identity, parse_config
from slmserve.drift import LEAST_REQUESTS, MEMORY_REQUESTS, REFERENCE_REQUESTS, DriftGauge, stability_index
from slmserve.metrics import Metrics
from slmserve.scripts import main_script
from slmserve.signals import AnswerWatch, Signals
from slmserve.tokenizer import TextCodec
from slmwire import env
from slmwire.metrics import DRIFT_SIGNALS, SCRIPT_LEAST, SCRIPTS
from tests.unit.slmserve.process import ServerProcess

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=13)


@given(COUNTS)
def test_equal_histograms_do_not_drift(counts: list[int]) -> None:
    assert stability_index(counts, counts) == 0.0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=13))
def test_the_index_is_a_distance(pairs: list[tuple[int, int]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    index = stability_index(a, b)
    assert 0 <= index < 20
    assert index == pytest.approx(stability_index(b, a))
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i], i))
    assert index == pytest.approx(stability_index([a[i] for i in order], [b[i] for i in order]))


def test_the_index_of_a_known_shift() -> None:
    # (0.5-0.25) ln 2 + (0.5-0.75) ln (2/3), with so many samples that chance is nothing.
    assert stability_index([5e8, 5e8], [2.5e8, 7.5e8]) == pytest.approx(0.27465, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 13))
def test_a_gauge_is_quiet_without_a_shift_and_sees_one(seed: int, classes: int) -> None:
    draw, gauge = random.Random(seed), DriftGauge(classes)
    weights = [1 + draw.random() for _ in range(classes)]
    for count in range(3 * REFERENCE_REQUESTS):
        gauge.observe(draw.choices(range(classes), weights)[0])
        if count < REFERENCE_REQUESTS + LEAST_REQUESTS - 1:
            assert gauge.read() is None
    found = gauge.read()
    assert found is not None and found.index < 0.25
    assert LEAST_REQUESTS <= found.samples < 2 * MEMORY_REQUESTS
    for _ in range(2 * MEMORY_REQUESTS):
        gauge.observe(0)
    found = gauge.read()
    assert found is not None and found.index > 0.5


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("two teas, please", "latin"),
        ("Žluťoučký kůň", "latin"),
        ("два чая, please", "cyrillic"),
        ("τσάι", "greek"),
        ("שתי כוסות תה", "hebrew"),
        ("كوبان من الشاي", "arabic"),
        ("दो चाय", "devanagari"),
        ("ชาสองแก้ว", "thai"),
        ("차 두 잔", "hangul"),
        ("お茶を二杯注文", "kana"),
        ("两杯茶", "han"),
        ("ორი ჩაი", "other"),
        ("12 + 7 = ?", "none"),
        ("", "none"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert main_script(text) == script


@given(st.text(max_size=50))
def test_every_text_has_a_script_of_the_list(text: str) -> None:
    assert main_script(text) in SCRIPTS


def _codec(**vocabulary: int) -> TextCodec:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    return TextCodec(tokenizer)


def _signals(*phrases: str) -> tuple[Signals, Metrics]:
    metrics = Metrics(Identity(namespace="n", deployment="d", revision="r", variant="v", model="m"))
    return Signals(metrics, phrases), metrics


def _text(metrics: Metrics) -> str:
    return metrics.render(queue_depth=0, busy=0).decode()


def _value(metrics: Metrics, series: str) -> float:
    name, _, labels = series.partition("{")
    for line in _text(metrics).splitlines():
        if line.startswith(name + "{") and labels.rstrip("}") in line:
            return float(line.rpartition(" ")[2])
    return 0.0


def test_fallback_tokens_are_the_unknown_one_and_bytes_beyond_ascii() -> None:
    codec = _codec(**{"<unk>": 0, "a": 1, "<0x0A>": 2, "<0xC3>": 3, "<0xA9>": 4})
    assert codec.fallback_tokens == {0, 3, 4}
    signals, metrics = _signals()
    signals.note_prompt([1, 2, 3, 4, 1], "aé", codec)
    assert _value(metrics, "slmserve_prompt_fallback_tokens_total{") == 2
    plain, others = _signals()
    plain.note_prompt([1, 2], "aa", _codec(a=1, b=2, **{"<pad>": 0}))
    assert "slmserve_prompt_fallback" not in _text(others)


def test_a_script_that_few_write_in_is_not_told() -> None:
    signals, metrics = _signals()
    codec = _codec(a=0)
    for _ in range(SCRIPT_LEAST):
        signals.note_prompt([0], "ชา", codec)
    assert 'script="thai"' not in _text(metrics)
    signals.note_prompt([0], "ชา", codec)
    assert _value(metrics, 'slmserve_prompt_script_total{script="thai"') == 1
    assert _value(metrics, 'slmserve_prompt_script_total{script="other"') == SCRIPT_LEAST


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I cannot help with that.", "true"),
        ("  **i  CANNOT help**", "true"),
        ("I\ncannot help", "true"),
        ("Certainly. I cannot help it.", "false"),
        ("I can", "false"),
        ("", "false"),
        ("Don\u2019t ask me", "true"),
    ],
)
def test_refusals_are_told_by_their_begin(text: str, refused: str) -> None:
    signals, metrics = _signals("I cannot help", "don't ask")
    watch = AnswerWatch(signals)
    for letter in text:
        watch.see(letter, None, tokens=1)
    watch.see("", "stop", tokens=7)
    assert _value(metrics, f'slmserve_refusal_checks_total{{refused="{refused}"') == 1
    assert _value(metrics, 'slmserve_answers_total{finish="stop"') == 1


def test_without_phrases_nothing_is_said_of_refusals() -> None:
    signals, metrics = _signals()
    AnswerWatch(signals).see("I cannot help", "length", tokens=4)
    assert "slmserve_refusal" not in _text(metrics)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="zqxé茶чΩ", min_size=8, max_size=40), min_size=1, max_size=20))
def test_no_text_shows(prompts: list[str]) -> None:
    signals, metrics = _signals("zqzqzqzq")
    codec = _codec(a=0)
    for prompt in prompts:
        signals.note_prompt([0] * len(prompt), prompt, codec)
        AnswerWatch(signals).see(prompt, "stop", tokens=3)
        signals.note_judgement(1.0)
    shown = _text(metrics)
    assert not any(prompt in shown for prompt in prompts) and "zqzq" not in shown


def test_every_signal_is_shown_once_there_is_enough() -> None:
    signals, metrics = _signals()
    codec = _codec(**{"<unk>": 0, "a": 1})

    def serve(text: str, tokens: list[int], score: float) -> None:
        signals.note_prompt(tokens, text, codec)
        signals.note_answer(finish="stop" if score > 0 else "length", tokens=len(tokens), begin="")
        signals.note_judgement(score)

    for _ in range(REFERENCE_REQUESTS):
        serve("tea", [1] * 10, 1.0)
    signals.show_drift()
    assert "slmserve_drift_index{" not in _text(metrics)
    for _ in range(MEMORY_REQUESTS):
        serve("чай", [0] * 300, -1.0)
    signals.show_drift()
    for signal in DRIFT_SIGNALS:
        assert _value(metrics, f'slmserve_drift_index{{signal="{signal}"') > 0.25, signal
        assert _value(metrics, f'slmserve_drift_samples{{signal="{signal}"') >= LEAST_REQUESTS


def test_phrases_come_from_the_environment() -> None:
    assert parse_config([], {env.REFUSAL_PHRASES: '["I cannot"]'}).refusal_phrases == ("I cannot",)
    assert parse_config([], {}).refusal_phrases == ()
    for wrong in ("I cannot", "{}", "[1]", '[" "]'):
        with pytest.raises(ConfigError, match="JSON list"):
            parse_config([], {env.REFUSAL_PHRASES: wrong})


@pytest.mark.parametrize("phrase", ["***", '"""', "- #", "\u201c\u201d\u2019", "-\n-", "*\u00a0*"])
def test_a_phrase_of_marks_alone_would_be_every_answer(phrase: str) -> None:
    with pytest.raises(ConfigError, match="has no letter"):
        parse_config([], {env.REFUSAL_PHRASES: json.dumps([phrase])})
    with pytest.raises(ValidationError, match="refusalPhrases"):
        FeedbackPolicy.model_validate({"refusalPhrases": [phrase]})


def test_a_server_counts_what_it_is_asked(orders_server: ServerProcess, client: OpenAI) -> None:
    before = orders_server.metrics()
    client.completions.create(model="orders", prompt=["qwzx one", "qwzx two"], n=2, max_tokens=3)
    client.chat.completions.create(
        model="orders", messages=[{"role": "user", "content": "qwzx три"}], max_tokens=3, stream=False
    )
    [*client.completions.create(model="orders", prompt="qwzx", max_tokens=2, stream=True)]
    after = orders_server.metrics()

    def grown(prefix: str) -> float:
        return sum(v - before.get(k, 0.0) for k, v in after.items() if k.startswith(prefix))

    assert grown("slmserve_prompt_length_tokens_count") == 4
    assert grown("slmserve_answers_total") == grown("slmserve_answer_length_tokens_count") == 6
    assert grown("slmserve_prompt_script_total") == 4
    assert "qwzx" not in httpx.get(f"{orders_server.url}/metrics").text
