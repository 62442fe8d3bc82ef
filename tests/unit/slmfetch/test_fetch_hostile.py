# SPDX-License-Identifier: Apache-2.0
"""Crashes at the worst instant, sources that mean harm, disks that fill up under a fetch."""

import signal
import subprocess
import sys
from pathlib import Path

from slmfetch.store import Store
from slmwire.manifest import Manifest
from tests.unit.slmfetch.kit import assert_consistent, environment, manifest_of, noise
from tests.unit.slmfetch.origin import Origin

DATA = noise(300_000, seed=8)

# As in its container: root without any capability, who may not write to a file of mode 0444.
_WITHOUT_CAPABILITIES = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
{then}
from slmfetch.__main__ import main
sys.exit(main(["fetch", "--serve", "--reserve-bytes", "0"]))
"""
_DIE = """
import os, signal
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
os.{call} = die
"""
_PAUSE = """
import os, time
fsync = os.fsync
def slowly(fd):
    if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
        print("syncing", flush=True)
        time.sleep(1)
    fsync(fd)
os.fsync = slowly
"""


def _manifest(origin: Origin) -> Manifest:
    origin.files["/m/model.onnx"] = DATA
    return manifest_of({"model.onnx": DATA}, f"{origin.url}/m")


def _start(store: Store, folder: Path, manifest: Manifest, then: str = "") -> subprocess.Popen[str]:
    (folder / "manifest.json").write_text(manifest.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_CAPABILITIES.replace("{then}", then)],
        env=environment(store, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_kill_between_verification_and_rename_does_not_block_the_store(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = _manifest(origin)
    for call in ("rename", "fchmod"):
        died = _start(store, tmp_path, manifest, _DIE.replace("{call}", call))
        died.communicate(timeout=20)
        assert died.returncode == -signal.SIGKILL
        again = _start(store, tmp_path, manifest)
        output, _ = again.communicate(timeout=20)
        assert again.returncode == 0, output
        assert_consistent(store)
        store.blob(manifest.files[0].sha256).unlink()


def test_a_second_fetch_waits_while_the_first_puts_the_file_on_disk(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    manifest = _manifest(origin)
    first = _start(store, tmp_path, manifest, _PAUSE)
    assert first.stdout is not None
    while "syncing" not in (line := first.stdout.readline()):
        assert line, "the fetch ended"
    second = _start(store, tmp_path, manifest)
    output, _ = second.communicate(timeout=20)
    assert second.returncode == 0, output
    first.communicate(timeout=20)
    assert first.returncode == 0
    assert_consistent(store)
