# SPDX-License-Identifier: Apache-2.0
"""What is pushed to a registry is what the archive holds, to the last byte."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from e2e.lib.artifacts import MANIFEST_TYPE, Repository
from e2e.rig import RigError
from e2e.rig.oci import write_binary_image


class Pushed(Repository):
    """A repository that keeps what it would send."""

    def __init__(self) -> None:
        super().__init__("registry", "e2e/tool")
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}

    def _send(self, verb: str, url: str, body: bytes, *, kind: str = "") -> str:
        if "/manifests/" in url:
            assert kind == MANIFEST_TYPE
            self.manifests[url.rpartition("/")[2]] = body
        elif verb == "PUT":
            self.blobs[url.partition("digest=")[2]] = body
        return "http://registry/upload"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_an_archive_of_one_binary_arrives_as_it_is(tmp_path: Path) -> None:
    binary = tmp_path / "tool"
    binary.write_bytes(b"\x7fELF and more")
    archive = tmp_path / "tool.oci.tar"
    write_binary_image(archive, reference="r/tool:1", binary=binary, entrypoint=["/bin/tool"], user="65534")
    pushed = Pushed()
    found = pushed.push_archive(archive, "1")
    assert digest(pushed.manifests["1"]) == found
    manifest = json.loads(pushed.manifests["1"])
    wanted = {part["digest"] for part in (manifest["config"], *manifest["layers"])}
    assert wanted == set(pushed.blobs)
    assert all(digest(content) == key for key, content in pushed.blobs.items())
    config = json.loads(pushed.blobs[manifest["config"]["digest"]])
    assert config["config"] == {"Entrypoint": ["/bin/tool"], "User": "65534"}


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "empty.tar"
    tarfile.open(archive, "w").close()
    with pytest.raises(RigError, match=r"empty\.tar.* has no file index\.json"):
        Pushed().push_archive(archive, "1")
