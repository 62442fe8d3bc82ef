# SPDX-License-Identifier: Apache-2.0
"""The manifest and the termination message: what crosses between operator, fetcher and server."""

import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmwire.distribution import Distribution, parse_distribution
from slmwire.manifest import Manifest, ManifestError, ManifestFile, digest_of, parse_manifest
from slmwire.paths import TERMINATION_LIMIT_BYTES, tree_subpath
from slmwire.reasons import Reason, Termination, parse_termination

HEX = "a" * 64
segments = st.text("abcXYZ019", min_size=1, max_size=6)
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)
nonsense = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["files", "path", "size", "url"]), inner),
    max_leaves=12,
)
shas = st.text("0123456789abcdef", min_size=64, max_size=64)
files = st.builds(
    ManifestFile, path=paths, size=st.integers(0, 2**50), sha256=shas, url=st.just("") | st.just("http://x/y")
)


def distinct(entries: list[ManifestFile]) -> list[ManifestFile]:
    """Those whose path is neither the path nor a folder of another."""
    kept: list[ManifestFile] = []
    for entry in entries:
        if not any(
            entry.path == other.path
            or entry.path.startswith(other.path + "/")
            or other.path.startswith(entry.path + "/")
            for other in kept
        ):
            kept.append(entry)
    return kept


manifests = st.lists(files, min_size=1, max_size=12).map(distinct)


@given(manifests)
def test_a_manifest_survives_the_round_trip(entries: list[ManifestFile]) -> None:
    manifest = Manifest(files=tuple(sorted(entries, key=lambda entry: entry.path)))
    again = parse_manifest(manifest.to_json())
    assert again == manifest and again.digest == manifest.digest
    assert again.size_bytes == sum(entry.size for entry in entries)


@given(manifests, st.randoms(use_true_random=False))
def test_the_digest_is_of_the_bytes_alone(entries: list[ManifestFile], random: Any) -> None:
    moved = [
        ManifestFile(path=entry.path, size=entry.size, sha256=entry.sha256, url="http://mirror/z")
        for entry in entries
    ]
    random.shuffle(moved)
    assert digest_of(moved) == digest_of(entries)
    assert tree_subpath(digest_of(moved)) == "trees/" + digest_of(entries)[7:]


@given(manifests, st.integers(0, 11))
def test_every_changed_file_changes_the_digest(entries: list[ManifestFile], index: int) -> None:
    old = entries[index % len(entries)]
    new = ManifestFile(path=old.path, size=old.size + 1, sha256=old.sha256)
    assert digest_of([new if entry is old else entry for entry in entries]) != digest_of(entries)


@given(st.text(max_size=40))
def test_an_accepted_path_stays_below_its_folder(path: str) -> None:
    text = json.dumps({"files": [{"path": path, "size": 1, "sha256": HEX}]})
    try:
        (entry,) = parse_manifest(text).files
    except ManifestError as error:
        assert "files[0].path" in str(error)
        return
    parts = PurePosixPath(entry.path).parts
    assert not PurePosixPath(entry.path).is_absolute()
    assert not any(part.startswith(".") or part == "" for part in parts)
    assert "\\" not in entry.path and "\0" not in entry.path


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a/./b", ".hidden", "a/.git/config", "a//b", "a/", "", "a\\b", "a b",
     "a\n", "\u0430bc", "~x", "x" * 201],
)  # fmt: skip
def test_path_traversal_is_refused(path: str) -> None:
    with pytest.raises(ManifestError, match=r"files\[0\]\.path"):
        parse_manifest(json.dumps({"files": [{"path": path, "size": 1, "sha256": HEX}]}))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("not json", "is not JSON"),
        ("[]", "has no files"),
        ('{"files": []}', "has no files"),
        ('{"files": ["a"]}', r"files\[0\]: must be an object"),
        (json.dumps({"files": [{"path": "a", "size": -1, "sha256": HEX}]}), r"files\[0\]\.size"),
        (json.dumps({"files": [{"path": "a", "size": True, "sha256": HEX}]}), r"files\[0\]\.size"),
        (json.dumps({"files": [{"path": "a", "size": "1", "sha256": HEX}]}), r"files\[0\]\.size"),
        (json.dumps({"files": [{"path": "a", "size": 1, "sha256": "A" * 64}]}), r"files\[0\]\.sha256"),
        (json.dumps({"files": [{"path": "a", "size": 1, "sha256": HEX, "url": 5}]}), r"files\[0\]\.url"),
        (json.dumps({"files": [{"path": "a", "size": 1, "sha256": HEX}] * 2}), "occurs twice"),
        (
            json.dumps({"files": [{"path": p, "size": 1, "sha256": HEX} for p in ("a", "a/b/c")]}),
            "is a file and the directory of",
        ),
        (
            json.dumps({"files": [{"path": f"f{i}", "size": 1, "sha256": HEX} for i in range(501)]}),
            "at most 500",
        ),
    ],
)
def test_what_is_no_manifest_is_named(body: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        parse_manifest(body)


@given(nonsense)
def test_any_json_is_read_or_refused(body: Any) -> None:
    try:
        assert parse_manifest(json.dumps(body)).files
    except ManifestError as error:
        assert str(error)


@given(st.text(max_size=9000), st.sampled_from(list(Reason)), st.integers(0, 2**60))
def test_a_termination_message_fits_the_kubelet_and_comes_back(text: str, reason: Reason, size: int) -> None:
    told = Termination(reason=reason, message=text, digest="sha256:" + HEX, bytes_downloaded=size)
    raw = told.to_json()
    assert len(raw.encode()) <= TERMINATION_LIMIT_BYTES
    heard = parse_termination(raw)
    assert heard is not None and (heard.reason, heard.bytes_downloaded) == (reason, size)
    if len(text) < 600:
        assert heard.message == text


@pytest.mark.parametrize(
    "text",
    [
        "", "panic: oh no", "[1]", "{}", '{"message": "x"}', "null", '{"reason": ["x"]}', "[" * 4096,
        '{"reason": ' + "[" * 4000,
    ],
)  # fmt: skip
def test_messages_of_other_programs_are_left_alone(text: str) -> None:
    assert parse_termination(text) is None


def test_numbers_that_are_none_count_as_zero() -> None:
    heard = parse_termination('{"reason": "Unfit", "bytesDownloaded": "many"}')
    assert heard == Termination(reason="Unfit")


def test_distribution_survives_the_way_through_json() -> None:
    told = Distribution(
        rate_limit_bytes_per_second=1 << 20,
        peer_port=8491,
        sites={"shop-1": {"a": "10.0.0.1", "b": "10.0.0.2"}, "shop-2": {"c": "10.0.1.1", "d": "10.0.1.2"}},
    )
    assert parse_distribution(told.to_json()) == told
    assert parse_distribution('{"later": 1}') == Distribution()
    assert told.neighbours("a") == {"b": "10.0.0.2"}
    assert told.neighbours("stranger") == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"peerPort": -1}', '{"peerPort": true}', '{"sites": []}', '{"sites": {"s": {"a": 1}}}'],
)
def test_distribution_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_distribution(text)


def test_the_place_inside_a_source_is_no_part_of_the_identity() -> None:
    plain = ManifestFile(path="m.bin", size=3, sha256="a" * 64, url="https://example.org/layer")
    inside = replace(plain, offset=512)
    manifest = Manifest(files=(inside,))
    assert parse_manifest(manifest.to_json()) == manifest
    assert manifest.digest == Manifest(files=(plain,)).digest


@pytest.mark.parametrize("offset", [-1, True, "0", 1.5])
def test_an_offset_that_is_no_number_of_bytes_is_refused(offset: object) -> None:
    row = {"path": "m.bin", "size": 3, "sha256": "a" * 64, "offset": offset}
    with pytest.raises(ManifestError, match=r"files\[0\]\.offset"):
        parse_manifest(json.dumps({"files": [row]}))
