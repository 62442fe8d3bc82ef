# SPDX-License-Identifier: Apache-2.0
"""Bundles for nodes without a network, and those that try to do harm."""

import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from slmfetch.bundle import forget_imports, import_bundle
from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.housekeeping import tidy
from slmfetch.inventory import observe_store
from slmfetch.store import Store, scan
from slmwire.manifest import Manifest
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import (
    assert_consistent,
    environment,
    job_of,
    manifest_of,
    noise,
    settings_of,
    tree_content,
)

FILES = {
    "model.onnx": noise(700_000, 31),
    "sub/tokenizer.json": noise(3000, 32),
    "copy.onnx": noise(3000, 32),
}
MANIFEST = manifest_of(FILES, "http://127.0.0.1:9/m")


def write_folder(root: Path, files: Mapping[str, bytes] = FILES, manifest: Manifest = MANIFEST) -> Path:
    root.mkdir()
    (root / "manifest.json").write_text(manifest.to_json())
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: Manifest = MANIFEST) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in (member("manifest.json", manifest.to_json().encode()), *members):
            archive.addfile(info, io.BytesIO(data))
    return path


def all_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(path, data) for path, data in FILES.items()]


def refuse(store: Store, source: Path, reason: Reason, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        import_bundle(store, source)
    assert caught.value.reason is reason
    assert scan(store.partial) == []
    assert_consistent(store)


@pytest.mark.parametrize("kind", ["folder", "tar", "stream"])
def test_an_imported_model_needs_no_network(store: Store, tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        done = import_bundle(store, write_folder(tmp_path / "bundle"))
    else:
        path = write_tar(tmp_path / "b.tar", member("sub", type=tarfile.DIRTYPE), *all_members())
        done = import_bundle(store, path if kind == "tar" else path.open("rb"))
    assert (done.digest, done.files) == (MANIFEST.digest, 3)
    assert (done.bytes_added, done.bytes_reused) == (703_000, 3000)
    tidy(store)  # nobody else pins them
    outcome = fetch(store, job_of(MANIFEST), settings_of(store))
    assert outcome.bytes_downloaded == 0
    assert tree_content(store, MANIFEST) == FILES
    assert_consistent(store)


def test_a_tar_made_by_tar_with_dots_is_taken(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        folder = write_folder(tmp_path / "bundle")
        archive.add(folder / "manifest.json", "./manifest.json")
        for name in FILES:
            archive.add(folder / name, f"./{name}")
    assert import_bundle(store, path).bytes_added == 703_000


def test_the_pin_of_an_import_goes_once_a_deployment_has_it(store: Store, tmp_path: Path) -> None:
    import_bundle(store, write_folder(tmp_path / "bundle"))
    pins = observe_store(store)["pins"]
    assert [(pin["namespace"], pin["complete"]) for pin in pins] == [("_import", True)]
    fetch(store, job_of(MANIFEST), settings_of(store))
    tidy(store)
    assert [pin["namespace"] for pin in observe_store(store)["pins"]] == ["shop"]
    assert len(scan(store.blobs)) == 2


def test_an_import_can_be_forgotten(store: Store, tmp_path: Path) -> None:
    import_bundle(store, write_folder(tmp_path / "bundle"))
    assert forget_imports(store, "sha256:" + "0" * 64) == 0
    assert len(scan(store.blobs)) == 2
    assert forget_imports(store, MANIFEST.digest) == 1
    assert scan(store.blobs) == []


def test_a_second_import_adds_nothing_and_a_broken_one_is_taken_up_again(
    store: Store, tmp_path: Path
) -> None:
    broken = write_tar(tmp_path / "broken.tar", *all_members()[:1])
    refuse(store, broken, Reason.UNFIT, "lacks 2 files: copy.onnx, sub/tokenizer.json")
    tidy(store)
    path = write_tar(tmp_path / "b.tar", *all_members())
    assert import_bundle(store, path).bytes_added == 3000
    assert import_bundle(store, path).bytes_added == 0


def test_bytes_that_do_not_match_never_become_a_blob(store: Store, tmp_path: Path) -> None:
    wrong = bytearray(FILES["model.onnx"])
    wrong[77] ^= 1
    refuse(
        store,
        write_tar(tmp_path / "b.tar", member("model.onnx", bytes(wrong))),
        Reason.INTEGRITY_MISMATCH,
        "sha256 is",
    )
    folder = write_folder(tmp_path / "bundle", {**FILES, "model.onnx": bytes(wrong)})
    refuse(store, folder, Reason.INTEGRITY_MISMATCH, "sha256 is")
    assert MANIFEST.files[1].sha256 not in [entry.name for entry in scan(store.blobs)]


def test_more_bytes_than_the_manifest_says_are_refused_unread(store: Store, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "b.tar", member("model.onnx", FILES["model.onnx"] + b"x"))
    refuse(store, path, Reason.INTEGRITY_MISMATCH, "700001 bytes, the manifest says 700000")
    # A header that promises the right size before a file that ends early.
    data = write_tar(tmp_path / "short.tar", member("model.onnx", FILES["model.onnx"])).read_bytes()
    (tmp_path / "short.tar").write_bytes(data[:200_000])
    with pytest.raises(FetchError):
        import_bundle(store, tmp_path / "short.tar")
    assert scan(store.blobs) == []


HOSTILE: dict[str, tuple[tarfile.TarInfo, bytes]] = {
    "up": member("../evil", b"x"),
    "absolute": member("/etc/evil", b"x"),
    "inside up": member("sub/../model.onnx", FILES["model.onnx"]),
    "unlisted": member("extra.bin", b"x"),
    "symbolic link": member("model.onnx", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("model.onnx", type=tarfile.LNKTYPE, linkname="manifest.json"),
    "device": member("model.onnx", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "fifo": member("model.onnx", type=tarfile.FIFOTYPE),
    "sparse": member("model.onnx", type=tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tar_that_tries_to_do_harm_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "b.tar", HOSTILE[name])
    before = {p for p in tmp_path.rglob("*") if store.root not in p.parents}
    refuse(store, path, Reason.UNFIT, "in the bundle|the bundle holds")
    assert {p for p in tmp_path.rglob("*") if store.root not in p.parents} == before
    assert scan(store.blobs) == []


def test_a_file_may_come_once(store: Store, tmp_path: Path) -> None:
    one = all_members()[0]
    refuse(store, write_tar(tmp_path / "b.tar", one, one), Reason.UNFIT, "or twice")


def _pax_bomb(path: Path) -> None:
    info = tarfile.TarInfo("bomb")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path.write_bytes(info.tobuf() + bytes(4096))


def _many_folders(path: Path) -> None:
    write_tar(path, *(member(f"d{index}", type=tarfile.DIRTYPE) for index in range(2001)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "not a readable uncompressed tar|empty"),
        (lambda path: path.write_bytes(noise(5000, 1)), "not a readable uncompressed tar"),
        (lambda path: path.write_bytes(gzip.compress(bytes(5000))), "unpack what is compressed"),
        (lambda path: path.write_bytes(bytes(10240)), "the bundle is empty"),
        (_pax_bomb, "an extended header is too large"),
        (_many_folders, "more than 2000 folders"),
    ],
    ids=["empty", "noise", "gzip", "zeros", "pax bomb", "many folders"],
)
def test_what_is_no_bundle_is_refused(
    store: Store, tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "b.tar")
    refuse(store, tmp_path / "b.tar", Reason.UNFIT, words)


def test_the_manifest_has_to_come_first_and_be_sound(store: Store, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.addfile(*_stream(*all_members()[0]))
    refuse(store, tmp_path / "b.tar", Reason.UNFIT, "put manifest.json first")
    bad = {"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]}
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.addfile(*_stream(*member("manifest.json", json.dumps(bad).encode())))
    refuse(store, tmp_path / "c.tar", Reason.UNFIT, "not a plain relative path")
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        archive.addfile(*_stream(*member("manifest.json", b" " * ((1 << 20) + 1))))
    refuse(store, tmp_path / "d.tar", Reason.UNFIT, "larger than")
    (tmp_path / "folder").mkdir()
    refuse(store, tmp_path / "folder", Reason.UNFIT, r"has no manifest\.json")
    refuse(store, tmp_path / "nothing", Reason.SOURCE_UNAVAILABLE, "cannot be read")


def _stream(info: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    return info, io.BytesIO(data)


def test_links_in_a_folder_are_not_followed(store: Store, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bundle")
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "model.onnx").rename(outside / "model.onnx")
    (folder / "model.onnx").symlink_to(outside / "model.onnx")
    refuse(store, folder, Reason.UNFIT, "model.onnx in the bundle cannot be read .*links are not followed")
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    refuse(store, folder, Reason.UNFIT, "not a regular file")
    (folder / "model.onnx").unlink()
    (outside / "model.onnx").rename(folder / "model.onnx")
    (folder / "sub").rename(outside / "sub")
    (folder / "sub").symlink_to(outside / "sub")
    refuse(store, folder, Reason.UNFIT, "sub/tokenizer.json in the bundle cannot be read")


def test_a_bundle_that_does_not_fit_is_refused_before_the_first_byte(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: (500_000, 1_000_000))
    refuse(store, write_folder(tmp_path / "bundle"), Reason.INSUFFICIENT_CAPACITY, "703000 bytes are missing")
    assert scan(store.refs) == []


def run_import(store: Store, folder: Path, *arguments: str, data: bytes = b"") -> tuple[int, str]:
    program = [sys.executable, "-m", "slmfetch", "--termination-log", str(folder / "termination")]
    process = subprocess.run(
        [*program, "import", *arguments],
        env=environment(store, folder),
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
    )
    return process.returncode, process.stdout.decode()


def test_the_program_takes_a_tar_on_standard_input(store: Store, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "b.tar", *all_members()).read_bytes()
    code, output = run_import(store, tmp_path, "-", data=tar)
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["digest"] == MANIFEST.digest
    code, output = run_import(store, tmp_path, "-", data=b"nonsense")
    assert (code, "not a readable uncompressed tar" in output) == (1, True)
    assert run_import(store, tmp_path, "--forget", "all")[0] == 0
    assert scan(store.blobs) == []
    code, output = run_import(store, tmp_path)
    assert (code, "name a bundle, or --forget" in output) == (2, True)
    assert not (tmp_path / "termination").exists(), "the message belongs to the pod, not to an exec in it"


class _Endless(io.RawIOBase):
    """A stream that says how much was read of it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest, self.given = pieces, b"", 0

    def read(self, count: int = -1) -> bytes:
        while len(self._rest) < count:
            self._rest += next(self._pieces)
        data, self._rest = self._rest[:count], self._rest[count:]
        self.given += count
        return data


def _old_sparse_map() -> Iterator[bytes]:
    head = bytearray(member("a", type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    head[482] = 1  # it goes on in the next block
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:]) + 8 * 32)
    yield bytes(head)
    while True:
        yield (b"%011o\0%011o\0" % (1, 1)) * 21 + b"\1" + bytes(7)


def _new_sparse_map() -> Iterator[bytes]:
    info = tarfile.TarInfo("a")
    info.size = 1 << 40
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    yield info.tobuf(tarfile.PAX_FORMAT)
    yield b"99999999\n".ljust(512, b"0")
    while True:
        yield b"0\n" * 256


@pytest.mark.parametrize("tail", [_old_sparse_map, _new_sparse_map])
def test_the_map_of_a_sparse_file_is_not_read(store: Store, tail: Callable[[], Iterator[bytes]]) -> None:
    text = MANIFEST.to_json().encode()
    head = member("manifest.json", text)[0].tobuf() + text + bytes(-len(text) % 512)
    stream = _Endless(itertools.chain([head], tail()))
    with pytest.raises(FetchError, match="sparse"):
        import_bundle(store, stream)  # type: ignore[arg-type]
    assert stream.given < 1 << 20
