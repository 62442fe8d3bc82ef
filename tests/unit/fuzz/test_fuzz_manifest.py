# SPDX-License-Identifier: Apache-2.0
"""What the operator and the fetcher read from others: manifests, distribution files, termination messages."""

import json
import os
from pathlib import PurePosixPath
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.model.geometry import parse_geometry, read_geometry
from slmwire.distribution import parse_distribution
from slmwire.manifest import MAX_BYTES, MAX_FILES, Manifest, ManifestError, parse_manifest
from slmwire.reasons import parse_termination
from slmwire.registry import parse_challenges
from tests.unit.fuzz.budget import examples
from tests.unit.fuzz.grammar import Body, damaged, text, values

VALID: Body = {
    "files": [
        {"path": "model.onnx", "size": 7, "sha256": "a" * 64, "url": "https://h/model.onnx"},
        {"path": "sub/tokenizer.json", "size": 0, "sha256": "b" * 64, "offset": 512},
    ]
}
_segments = st.one_of(
    st.sampled_from(
        ["..", ".", "", "~", "a", "model.onnx", ".hidden", "con", "a b", "\x00", "a\\b", "é", "-r"]
    ),
    st.text(max_size=5),
)
paths = st.one_of(st.lists(_segments, min_size=1, max_size=4).map("/".join), st.text(max_size=10))
CONFIG_KEYS = [
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "max_position_embeddings", "model", "decoder", "context_length", "text_config", "bytes", "layers",
]  # fmt: skip
files = st.fixed_dictionaries(
    {
        "path": st.one_of(paths, values),
        "size": st.one_of(st.integers(), st.sampled_from([10**400, True, 1.5, "7", MAX_BYTES + 1]), values),
        "sha256": st.one_of(st.sampled_from(["a" * 64, "A" * 64, "a" * 63, "a" * 64 + "\n"]), values),
    },
    optional={"url": st.one_of(text, values, st.just("\ud800")), "offset": values},
)
raw = st.one_of(
    st.binary(max_size=200),
    st.one_of(
        values, damaged([VALID]), st.fixed_dictionaries({"files": st.lists(files, max_size=4)})
    ).map(lambda body: json.dumps(body).encode()),
    st.sampled_from(
        [
            b"[" * 100_000,
            b'{"files":' * 50_000,
            b'{"files":[{"path":"a","size":1' + b"0" * 5000 + b"}]}",
            b'{"files":[' + b'{"path":"a"},' * 600 + b"{}]}",
            b'{"files":[],"files":[{}]}',
            b"\xff\xfe{\x00}\x00",
            b"\xef\xbb\xbf{}",
            b'{"files":[{"path":"a","size":NaN,"sha256":""}]}',
        ]
    ),
)  # fmt: skip


def check_manifest(manifest: Manifest) -> None:
    """What everybody relies on who makes files by a manifest."""
    assert 0 < len(manifest.files) <= MAX_FILES
    seen = [file.path for file in manifest.files]
    assert len(set(seen)) == len(seen)
    for file in manifest.files:
        path = PurePosixPath(file.path)
        assert not path.is_absolute() and str(path) == file.path
        assert not any(part.startswith(".") or part.startswith("-") for part in path.parts)
        assert os.path.normpath(os.path.join("/store", file.path)) == f"/store/{file.path}"  # noqa: PTH118
        assert not {str(parent) for parent in path.parents} & set(seen)
        assert 0 <= file.size <= MAX_BYTES and 0 <= file.offset <= MAX_BYTES
    assert parse_manifest(manifest.to_json()) == manifest


@examples(400)
@given(raw=raw)
def test_a_manifest_is_sound_or_refused_with_a_short_reason(raw: bytes) -> None:
    for form in (raw, raw.decode("utf-8", "surrogateescape")):
        try:
            manifest = parse_manifest(form)
        except ManifestError as error:
            assert 0 < len(str(error)) < 700
            assert str(error).isprintable() or "\\" in str(error) or "JSON" in str(error)
        else:
            check_manifest(manifest)


@examples(300)
@given(raw=raw)
def test_any_distribution_file_is_read_or_refused(raw: bytes) -> None:
    try:
        parse_distribution(raw.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        assert str(error)


@examples(300)
@given(raw=raw)
def test_any_last_words_are_ours_or_none(raw: bytes) -> None:
    found = parse_termination(raw.decode("utf-8", "replace"))
    assert found is None or isinstance(found.reason, str)


@examples(200)
@given(lines=st.lists(st.one_of(text, st.from_regex(r"(Bearer|Basic) [a-z]+=\"?[^\"]{0,20}")), max_size=3))
def test_any_challenge_of_a_registry_is_read(lines: list[str]) -> None:
    parse_challenges(lines)


@examples(300)
@given(body=st.one_of(values, st.dictionaries(st.sampled_from(CONFIG_KEYS), values)), raw=raw)
def test_what_a_model_says_of_itself_is_read_or_left(body: Any, raw: bytes) -> None:
    read_geometry(body)
    for text_form in (raw, json.dumps(body).encode()):
        found = parse_geometry(text_form)
        assert found is None or read_geometry(found.to_body()) == found
