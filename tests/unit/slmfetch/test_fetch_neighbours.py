# SPDX-License-Identifier: Apache-2.0
"""What one deployment does wrong, a clock or a disk, never harms what another one has in the store."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slmfetch.config import Owner
from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.store import Store
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import OWNER, job_of, manifest_of, noise, settings_of, tree_content
from tests.unit.slmfetch.origin import Fault, Origin

DATA = noise(100_000, seed=3)
NEIGHBOUR = Owner(namespace="other", deployment="neighbour")


def _manifest(origin: Origin, data: bytes = DATA, *, folder: str = "m") -> Manifest:
    origin.files[f"/{folder}/model.onnx"] = data
    return manifest_of({"model.onnx": data}, f"{origin.url}/{folder}")


def _wrong(manifest: Manifest, **changes: object) -> Manifest:
    return Manifest(files=(replace(manifest.files[0], **changes),))  # type: ignore[arg-type]


def _refuse(store: Store, manifest: Manifest, owner: Owner = NEIGHBOUR, revision: str = "n1") -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest, revision, owner=owner), settings_of(store))
    return caught.value


@pytest.mark.parametrize("size", [0, 99_999, 100_001])
def test_a_wrong_size_does_not_cost_the_neighbour_its_file(origin: Origin, store: Store, size: int) -> None:
    manifest = _manifest(origin)
    fetch(store, job_of(manifest), settings_of(store))
    error = _refuse(store, _wrong(manifest, size=size))
    assert error.reason is Reason.UNFIT
    assert f"{size} bytes" in error.message and "100000" in error.message
    origin.files.clear()
    fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_a_bad_source_does_not_hold_off_a_sound_one(origin: Origin, store: Store) -> None:
    manifest = _manifest(origin)
    origin.files["/bad/model.onnx"] = noise(100_000, seed=4)
    bad = _wrong(manifest, url=f"{origin.url}/bad/model.onnx")
    assert _refuse(store, bad).reason is Reason.INTEGRITY_MISMATCH
    fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_a_source_that_limits_does_not_hold_off_another(origin: Origin, store: Store) -> None:
    manifest = _manifest(origin)
    limited = _wrong(manifest, url=f"{origin.url}/limited/model.onnx")
    origin.faults["/limited/model.onnx"] = [Fault(status=429, headers=(("Retry-After", "3600"),))]
    assert _refuse(store, limited).reason is Reason.RATE_LIMITED
    fetch(store, job_of(manifest), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_a_hold_off_from_the_future_is_a_clock_that_jumped(origin: Origin, store: Store) -> None:
    manifest = _manifest(origin)
    origin.faults["/m/model.onnx"] = [Fault(flip_byte_at=9)] * 2
    _refuse(store, manifest, OWNER, "r1")
    record = store.quarantine / f"{manifest.files[0].sha256}.json"
    for not_before in (time.time() + 10 * 365 * 86_400, math.inf, math.nan):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"notBefore": not_before}))
        fetch(store, job_of(manifest), settings_of(store))
        assert tree_content(store, manifest) == {"model.onnx": DATA}
        for path in (store.blob(manifest.files[0].sha256), store.tree(manifest.digest) / "model.onnx"):
            path.unlink()
        record.write_text(
            json.dumps({"failures": 1, "actualSha256": "", "url": manifest.files[0].url, "notBefore": 0})
        )


@pytest.mark.parametrize("seconds", ["9" * 400, "99999999999"])
def test_a_source_cannot_ask_to_be_left_alone_for_ever(origin: Origin, store: Store, seconds: str) -> None:
    manifest = _manifest(origin)
    origin.faults["/m/model.onnx"] = [Fault(status=429, headers=(("Retry-After", seconds),))]
    assert _refuse(store, manifest, OWNER, "r1").reason is Reason.RATE_LIMITED
    assert _refuse(store, manifest, OWNER, "r1").reason is Reason.RATE_LIMITED
    meta = json.loads((store.partial / f"{manifest.files[0].sha256}.json").read_text())
    assert meta["notBefore"] <= time.time() + 86_500


@pytest.mark.parametrize("damage", ['{"files":[["a",Infinity,"x"]]}', "[" * 100_000, "\x00", ""])
def test_a_damaged_pin_keeps_no_cached_model_from_starting(origin: Origin, store: Store, damage: str) -> None:
    manifest = _manifest(origin)
    fetch(store, job_of(manifest), settings_of(store))
    folder = store.refs / OWNER.key
    (folder / "older.json").write_text(damage)
    origin.files.clear()
    for owner in (OWNER, NEIGHBOUR):
        fetch(store, job_of(manifest, owner=owner), settings_of(store))
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def test_a_link_in_place_of_a_tree_is_not_followed(origin: Origin, store: Store, tmp_path: Path) -> None:
    manifest = _manifest(origin)
    fetch(store, job_of(manifest), settings_of(store))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    tree = store.tree(manifest.digest)
    tree.rename(tmp_path / "gone")
    tree.symlink_to(elsewhere)
    fetch(store, job_of(manifest), settings_of(store))
    assert not tree.is_symlink() and tree_content(store, manifest) == {"model.onnx": DATA}
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]


def test_a_manifest_nested_without_end_is_malformed() -> None:
    with pytest.raises(ManifestError):
        parse_manifest("[" * 200_000)


def test_a_null_byte_in_a_file_url_is_unfit(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of({"model.onnx": DATA}, f"file://{tmp_path}/a%00b")
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store, file_roots=(tmp_path,)))
    assert caught.value.reason is Reason.UNFIT
