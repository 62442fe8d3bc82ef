# SPDX-License-Identifier: Apache-2.0
"""generation_config.json: end tokens add up, and sampling is used only where the model says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from slmserve.defaults import load_defaults
from slmserve.errors import StartError

_OWN = frozenset({7})


def _load(directory: Path, body: Any) -> Any:
    (directory / "generation_config.json").write_text(json.dumps(body))
    defaults = load_defaults(directory, _OWN)
    return set(defaults.end_tokens), defaults.temperature, defaults.top_p


def test_without_a_file_it_is_greedy(tmp_path: Path) -> None:
    defaults = load_defaults(tmp_path, _OWN)
    assert (defaults.end_tokens, defaults.temperature, defaults.top_p) == (_OWN, 0, 1)


def test_the_files_end_tokens_and_sampling_count(tmp_path: Path) -> None:
    assert _load(tmp_path, {"eos_token_id": [1, 2]}) == ({1, 2, 7}, 0, 1)
    assert _load(tmp_path, {"eos_token_id": 3, "temperature": 0.6, "top_p": 0.9}) == ({3, 7}, 0, 1)
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    assert _load(tmp_path, sampled) == ({7}, 0.6, 0.9)
    assert _load(tmp_path, {"do_sample": True}) == ({7}, 1, 1)


@pytest.mark.parametrize("body", [[], {"eos_token_id": "x"}, {"top_p": 1.5}, {"temperature": "warm"}])
def test_a_file_that_makes_no_sense_is_unfit(tmp_path: Path, body: Any) -> None:
    with pytest.raises(StartError, match=r"generation_config\.json|the model's configuration misstates"):
        _load(tmp_path, body)
