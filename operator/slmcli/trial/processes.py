# SPDX-License-Identifier: Apache-2.0
"""Fetcher and server as processes of their own: this program imports neither."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import urllib3

from slmcli.errors import CliError, RefusedError, UsageError
from slmcli.render.cache import size_text
from slmcli.safe import clean
from slmcli.session import Session
from slmcli.trial.plan import Plan
from slmwire import env
from slmwire.paths import PATH_READY, tree_subpath
from slmwire.reasons import parse_termination

HOST: Final = "127.0.0.1"
PACKAGES: Final = (
    "slmfetch",
    "slmserve",
    "uvicorn",
    "uvloop",
    "starlette",
    "numpy",
    "tokenizers",
    "jinja2",
    "prometheus_client",
)
"""What the server needs whichever engine it has; engines say themselves what they lack."""
DRAIN_SECONDS: Final = 5
POLL_SECONDS: Final = 0.1


class TrialError(CliError):
    """Fetching or serving failed; the text says why."""

    code = RefusedError.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where things lie: the store, and a folder for what one run needs."""

    store: Path
    work: Path

    @property
    def manifest(self) -> Path:
        """The resolved manifest."""
        return self.work / "manifest.json"

    @property
    def termination(self) -> Path:
        """Where a process says why it failed."""
        return self.work / "termination.json"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.work / "server.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A server that is ready."""

    url: str
    engine: str
    score: float | None
    """Share (0 to 1) of the golden set that was answered as expected; None where there is none."""
    samples: int


def default_store(environ: Mapping[str, str]) -> Path:
    """The store below the user's data."""
    home = environ.get("XDG_DATA_HOME") or ""
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share"
    return base / "slmops" / "store"


def check_runtime(platform: str = sys.platform) -> None:
    """UsageError when the server cannot run here."""
    if not platform.startswith("linux"):
        raise UsageError("the inference server runs on Linux only; use a virtual machine or a container")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the inference server's packages are not installed ({', '.join(missing)}); install them: "
            "pip install 'slmops[runtime]', from a checkout pip install '.[runtime]'"
        )


def build_environment(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """Of both processes: as the operator's pods have it, and nothing of another deployment."""
    own = {
        env.NAMESPACE: plan.namespace,
        env.DEPLOYMENT: plan.name,
        env.REVISION: plan.revision,
        env.VARIANT: plan.variant,
        env.MODEL: plan.model,
        env.MODEL_VERSION: plan.version,
        env.NODE: "this-machine",
        env.ENGINE: plan.serving.engine,
        env.THREADS: str(plan.serving.threads),
        env.SLOTS: str(plan.serving.slots),
        env.CONTEXT_LENGTH: str(plan.serving.context_length),
        env.MAX_QUEUE: str(plan.serving.max_queue),
        env.DEFAULT_ADAPTER: plan.default_adapter,
        env.EVALUATE: "true" if plan.evaluate else "false",
        env.DRAIN_SECONDS: str(DRAIN_SECONDS),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    kept = {key: value for key, value in environ.items() if not key.startswith("SLM_")}
    return kept | own


def fetch(plan: Plan, folders: Folders, session: Session) -> Path:
    """Bring the files into the store, each checked against its hash; returns the model's folder."""
    folders.manifest.write_text(plan.resolved.manifest.to_json(), encoding="utf-8")
    roots = ["--file-root", plan.file_root] if plan.file_root else []
    arguments = ["fetch", "--serve", "--manifest", str(folders.manifest), *roots]
    shared = ["--store", str(folders.store), "--termination-log", str(folders.termination)]
    with _running("slmfetch", [*shared, *arguments], plan, subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = progress_text(_line(line))
            if text:
                session.say(text)
        if process.wait() != 0:
            raise TrialError(f"the model could not be fetched: {_why(folders.termination)}")
    return folders.store / tree_subpath(plan.resolved.manifest.digest)


def progress_text(line: Mapping[str, Any]) -> str:
    """What a line of the fetcher's log means to a person; empty for nothing."""
    match line.get("msg"):
        case "fetching model":
            return f"fetching {line.get('files')} file(s), {size_text(_number(line.get('bytes')))}"
        case "fetching":
            done, total = _number(line.get("bytes")), _number(line.get("total"))
            speed = _number(line.get("bytesPerSecond"))
            share = f"{100 * done // total}% of {size_text(total)}" if total else size_text(done)
            return f"  {clean(str(line.get('file')))}: {share}, {size_text(speed)}/s"
        case "model is in the store":
            reused = _number(line.get("bytesReused"))
            there = f", {size_text(reused)} were there" if reused else ""
            return f"verified {clean(str(line.get('digest')))}{there}"
        case _:
            return clean(str(line.get("why") or "")) if line.get("level") == "warning" else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


@contextlib.contextmanager
def serve(plan: Plan, model_dir: Path, folders: Folders, *, port: int) -> Iterator["Server"]:
    """The server as long as the block runs; it drains at the end."""
    arguments = ["--model-dir", str(model_dir), "--model-digest", plan.resolved.manifest.digest]
    arguments += ["--manifest-file", str(folders.manifest), "--host", HOST, "--port", str(port)]
    arguments += ["--termination-log", str(folders.termination)]
    arguments += ["--engine-choice-file", str(folders.work / "engine.json")]
    folders.termination.unlink(missing_ok=True)
    with folders.log.open("wb") as log, _running("slmserve", arguments, plan, log.fileno()) as process:
        yield Server(process, folders)


class Server:
    """A server process, seen through its log and its probe."""

    def __init__(self, process: "subprocess.Popen[bytes]", folders: Folders) -> None:
        self._process = process
        self._folders = folders
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(5.0))

    def wait_ready(self, session: Session) -> Started:
        """Wait until it serves; each phase is said once. TrialError when it ends before."""
        said = ""
        while True:
            self._check()
            port = next((_number(entry.get("port")) for entry in self._entries("listening")), 0)
            phase = self._phase(port) if port else ""
            if phase == "ready":
                return self._started(port)
            if phase not in ("", said):
                session.say({"evaluating": "answering its golden set"}.get(phase, clean(phase)))
                said = phase
            session.sleep(POLL_SECONDS)

    def wait_end(self) -> None:
        """Wait until it ends by itself, which is an error."""
        self._process.wait()
        self._check()

    def _check(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise TrialError(f"the server ended with code {code}: {self._reason()}")

    def _reason(self) -> str:
        known = _why(self._folders.termination)
        errors = [str(entry.get("message")) for entry in self._entries() if entry.get("level") == "error"]
        tail = self._folders.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        return known or clean((errors or tail or ["it said nothing"])[-1])

    def _phase(self, port: int) -> str:
        try:
            answer = self._pool.request("GET", f"http://{HOST}:{port}{PATH_READY}")
            return str(json.loads(answer.data).get("status", ""))
        except (urllib3.exceptions.HTTPError, ValueError, AttributeError):
            return ""

    def _started(self, port: int) -> Started:
        loaded = next(iter(self._entries("model loaded")), {})
        golden = next(iter(self._entries("evaluated")), {})
        score = golden.get("score")
        return Started(
            url=f"http://{HOST}:{port}/v1",
            engine=clean(str(loaded.get("engine", ""))),
            score=float(score) if isinstance(score, int | float) else None,
            samples=_number(golden.get("samples")),
        )

    def _entries(self, message: str | None = None) -> list[dict[str, Any]]:
        lines = self._folders.log.read_bytes().splitlines()
        found = (_line(line) for line in lines)
        return [entry for entry in found if message is None or entry.get("message") == message]


def _line(text: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _why(path: Path) -> str:
    try:
        found = parse_termination(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return clean(f"{found.reason}: {found.message}") if found is not None else ""


@contextlib.contextmanager
def _running(
    module: str, arguments: Sequence[str], plan: Plan, out: int
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, so that Ctrl-C reaches this program alone, which ends it well."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    # -P: a file of the folder that one happens to be in must not take the module's place.
    root = str(Path(spec.origin).parent.parent)
    environment = build_environment(plan, os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)
        if process.stdout is not None:
            process.stdout.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=DRAIN_SECONDS + 10)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
        process.kill()
        process.wait()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that no server stays behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
