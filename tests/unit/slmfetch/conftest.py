# SPDX-License-Identifier: Apache-2.0
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmfetch.store import Store
from tests.unit.slmfetch.origin import Origin, serve_origin


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine between us and loopback; back-off in hundredths of a second."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("slmfetch.download.BACKOFF_SECONDS", 0.02)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serve_origin() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    result = Store(tmp_path / "store")
    result.prepare()
    return result


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Store]:
    """A store on a file system of its own with 4 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
    try:
        store = Store(root)
        store.prepare()
        yield store
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
