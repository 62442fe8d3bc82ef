# SPDX-License-Identifier: Apache-2.0
"""Helpers of the fetcher's tests."""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from slmfetch.config import Owner, Settings
from slmfetch.fetch import Job, Purpose
from slmfetch.store import Store, scan
from slmwire.manifest import Manifest, ManifestFile

OWNER = Owner(namespace="shop", deployment="orders")
ROOT = Path(__file__).resolve().parents[3]


def noise(count: int, seed: int) -> bytes:
    """Bytes that no two offsets share by accident."""
    return random.Random(seed).randbytes(count)


def manifest_of(files: Mapping[str, bytes], base: str) -> Manifest:
    """Manifest of these files below a URL."""
    rows = sorted(
        (
            ManifestFile(
                path=path,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                url=f"{base}/{path}",
            )
            for path, data in files.items()
        ),
        key=lambda f: f.path,
    )
    return Manifest(files=tuple(rows))


def settings_of(store: Store, **changes: Any) -> Settings:
    """Settings that give up soon."""
    defaults: dict[str, Any] = {
        "store_dir": store.root,
        "reserve_bytes": 0,
        "timeout_seconds": 20.0,
        "stall_timeout_seconds": 1.0,
        "attempts": 3,
    }
    return Settings(**(defaults | changes))


def job_of(manifest: Manifest, revision: str = "r1", **changes: Any) -> Job:
    """A fetch of `manifest` to serve it."""
    defaults: dict[str, Any] = {
        "owner": OWNER,
        "revision": revision,
        "manifest": manifest,
        "purpose": Purpose.SERVE,
    }
    return Job(**(defaults | changes))


def tree_content(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """What a server would see."""
    root = store.tree(manifest.digest)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def assert_consistent(store: Store) -> None:
    """What must hold at every instant, whatever was killed: all that is published is right."""
    for entry in scan(store.blobs):
        data = Path(entry.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.name
        # A kill right after the rename leaves 0600; the next fetch hashes such a blob before it is used.
        assert entry.stat().st_mode & 0o777 in (0o444, 0o600)
    blobs = {entry.stat().st_ino for entry in scan(store.blobs)}
    for tree in scan(store.trees):
        if tree.name.startswith("."):
            continue
        for path in Path(tree.path).rglob("*"):
            assert path.is_dir() or path.stat().st_ino in blobs


def environment(store: Store, folder: Path, **extra: str) -> dict[str, str]:
    """Environment of a fetcher process."""
    inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT / "operator"),
        "SLM_NAMESPACE": OWNER.namespace,
        "SLM_DEPLOYMENT": OWNER.deployment,
        "SLM_REVISION": "r1",
        "SLM_STORE_DIR": str(store.root),
        "SLM_MANIFEST_FILE": str(folder / "manifest.json"),
        "SLM_READY_FILE": str(folder / "ready"),
        **extra,
    }


def start_fetcher(
    command: Iterable[str], store: Store, folder: Path, manifest: Manifest | None = None, **extra: str
) -> subprocess.Popen[str]:
    """Start the real program; its termination log is `folder/termination`."""
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest.to_json())
    arguments = [sys.executable, "-m", "slmfetch", "--termination-log", str(folder / "termination"), *command]
    return subprocess.Popen(
        arguments,
        env=environment(store, folder, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process, once it has ended."""
    output = process.communicate(timeout=60)[0]
    return process.returncode, output
