# SPDX-License-Identifier: Apache-2.0
"""Runs one fetch of a model on a node of the lab, ours or curl's, and measures it from outside."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.bench.fetch_lab import Lab
from e2e.bench.fleet_numbers import memory_bytes
from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import RigError
from slmfetch.store import Store
from slmwire import env
from slmwire.manifest import Manifest, ManifestFile

FILE: Final = "model.bin"
_POLL_SECONDS: Final = 0.004
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The file that everybody fetches."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one fetch cost."""

    seconds: float
    line_bytes: int
    """What the origin put on the line meanwhile, headers included."""
    peak_bytes: int
    """Highest resident memory of the process; of all runs, when it was killed and started again."""
    said: Mapping[str, Any]
    """The termination message; empty for curl."""


def make_model(folder: Path, *, megabytes: int) -> Model:
    """A file of random bytes (seeded), which no layer between can compress."""
    generator, digest = random.Random(20260105), hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = generator.randbytes(_BLOCK_BYTES)
            digest.update(block)
            file.write(block)
    return Model(path=path, size=megabytes * _BLOCK_BYTES, sha256=digest.hexdigest())


def draw_kills(count: int, *, size: int, seed: int) -> list[int]:
    """Positions in the file, in order, at which a fetch is killed: anywhere but at the very ends."""
    generator = random.Random(seed)
    return sorted(generator.randint(size // 50, size - size // 50) for _ in range(count))


def resent_percent(line_bytes: int, *, unbroken_bytes: int, size: int) -> float:
    """How much more crossed the line than in one unbroken download, in percent of the model."""
    return 100 * (line_bytes - unbroken_bytes) / size


class Bench:
    """One lab, one model, and a folder for what the nodes keep."""

    def __init__(self, lab: Lab, model: Model, *, folder: Path) -> None:
        self.lab = lab
        self.model = model
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = ManifestFile(
            path=FILE, size=model.size, sha256=model.sha256, url=f"{lab.url}/{model.path.name}"
        )
        self.manifest = folder / "manifest.json"
        self.manifest.write_text(Manifest(files=(file,)).to_json())

    def store(self, node: str) -> Path:
        """The node's model store."""
        return self.folder / node / "store"

    def clear(self, node: str) -> None:
        """Forget whatever the node has."""
        shutil.rmtree(self.folder / node, ignore_errors=True)
        self.store(node).mkdir(parents=True)

    def environment(self, node: str, **more: str) -> dict[str, str]:
        """What the operator sets on a fetching pod."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CHECKOUT / "operator"),
            "PYTHONDONTWRITEBYTECODE": "1",
            env.NAMESPACE: "bench",
            env.DEPLOYMENT: "orders",
            env.REVISION: "r1",
            env.NODE: node,
            env.STORE_DIR: str(self.store(node)),
        } | more

    def start_ours(self, node: str, *options: str, **more: str) -> "subprocess.Popen[bytes]":
        """Our fetcher, as a pod would run it."""
        words: list[str | Path] = [
            sys.executable, "-m", "slmfetch", "--termination-log", self.folder / node / "said.json",
            "fetch", "--manifest", self.manifest, *options,
        ]  # fmt: skip
        return self.lab.start(
            node, *words, env=self.environment(node, **more), log=self.folder / node / "log"
        )

    def start_curl(self, node: str) -> "subprocess.Popen[bytes]":
        """`curl -C -`, which resumes what is there."""
        words: list[str | Path] = [
            "curl",
            "-sSf",
            "-C",
            "-",
            "-o",
            self.store(node) / FILE,
            f"{self.lab.url}/{FILE}",
        ]
        return self.lab.start(node, *words, env={"PATH": os.environ["PATH"]}, log=self.folder / node / "log")

    def run_ours(self, node: str, *options: str, kills: Sequence[int] = ()) -> Measured:
        """Fetch to the end with our fetcher; check that what lies there is the model."""
        measured = self._measure(node, lambda: self.start_ours(node, *options), kills=kills)
        self.check(Store(self.store(node)).blob(self.model.sha256))
        return measured

    def run_curl(self, node: str, *, kills: Sequence[int] = ()) -> Measured:
        """Fetch to the end with curl; check it, outside the clock."""
        measured = self._measure(node, lambda: self.start_curl(node), kills=kills)
        self.check(self.store(node) / FILE)
        return measured

    def check(self, path: Path) -> None:
        """RigError unless the file there is the model."""
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.model.sha256:
                raise RigError(f"{path} is not what was to be fetched")

    def said(self, node: str) -> Mapping[str, Any]:
        """The node's termination message; empty when there is none."""
        path = self.folder / node / "said.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _measure(
        self, node: str, start: Callable[[], "subprocess.Popen[bytes]"], *, kills: Sequence[int]
    ) -> Measured:
        begin_bytes, begin = self.lab.sent_bytes(), time.monotonic()
        peak, left = 0, list(kills)
        while True:
            process = start()
            while process.poll() is None:
                peak = max(peak, peak_memory(process.pid))
                if left and self.lab.sent_bytes() - begin_bytes >= left[0]:
                    left.pop(0)
                    process.kill()
                    process.wait()
                    break
                time.sleep(_POLL_SECONDS)
            else:
                break
        seconds = time.monotonic() - begin
        if process.returncode:
            log = (self.folder / node / "log").read_text(errors="replace")[-1500:]
            raise RigError(f"the fetch on {node} exited {process.returncode}: {log}")
        if left:
            raise RigError(f"the fetch on {node} ended before {len(left)} of {len(kills)} kills")
        return Measured(
            seconds=seconds,
            line_bytes=self.lab.sent_bytes() - begin_bytes,
            peak_bytes=peak,
            said=self.said(node),
        )


def peak_memory(pid: int) -> int:
    """Highest resident memory of a process so far, in bytes; 0 when it has ended."""
    # Not ru_maxrss: before exec a child counts what its parent has.
    try:
        return memory_bytes(Path(f"/proc/{pid}/status").read_text(), "VmHWM")
    except (OSError, ValueError):  # it has just ended
        return 0
