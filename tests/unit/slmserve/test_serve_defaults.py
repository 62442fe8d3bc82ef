# SPDX-License-Identifier: Apache-2.0
"""End tokens and sampling of a model directory in Hugging Face's layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from slmserve.defaults import load_defaults
from slmserve.errors import StartError
from slmwire.reasons import Reason

_TOKENIZER = {"added_tokens": [{"id": 0, "content": "<pad>"}, {"id": 9, "content": "<end>"}]}


def _write(directory: Path, **files: Any) -> Path:
    for name, body in files.items():
        text = body if isinstance(body, str) else json.dumps(body)
        (directory / f"{name}.json").write_text(text)
    return directory


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config": {"eos_token_id": [3, 4]}, "config": {"eos_token_id": 5}}, {3, 4}),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 5}}, {5}),
        ({"config": {"eos_token_id": 0}}, {0}),
        ({"tokenizer_config": {"eos_token": "<end>"}, "tokenizer": _TOKENIZER}, {9}),
        ({"tokenizer_config": {"eos_token": {"content": "<end>"}}, "tokenizer": _TOKENIZER}, {9}),
    ],
)
def test_the_first_file_that_names_an_end_token_counts(
    tmp_path: Path, files: dict[str, Any], ends: set[int]
) -> None:
    assert load_defaults(_write(tmp_path, **files)).end_tokens == ends


def test_sampling_counts_only_where_the_model_samples(tmp_path: Path) -> None:
    config = {"eos_token_id": 1, "temperature": 0.7, "top_p": 0.9}
    greedy = load_defaults(_write(tmp_path, generation_config=config))
    assert (greedy.temperature, greedy.top_p) == (0.0, 1.0)
    sampled = load_defaults(_write(tmp_path, generation_config=config | {"do_sample": True}))
    assert (sampled.temperature, sampled.top_p) == (0.7, 0.9)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config": {"eos_token": "<none>"}, "tokenizer": _TOKENIZER},
        {"config": {"eos_token_id": "one"}},
        {"config": {"eos_token_id": {}}},
        {"generation_config": {"eos_token_id": 1, "temperature": "hot"}},
        {"config": "[]"},
        {"config": "{"},
        {"tokenizer_config": {"eos_token": "<end>"}, "tokenizer": {"added_tokens": [7]}},
        {"tokenizer_config": {"eos_token": "<end>"}, "tokenizer": {"added_tokens": [{"content": "<end>"}]}},
    ],
)
def test_what_says_no_end_token_is_unfit(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(StartError) as caught:
        load_defaults(_write(tmp_path, **files))
    assert caught.value.reason is Reason.UNFIT
