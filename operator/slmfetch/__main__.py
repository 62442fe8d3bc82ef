# SPDX-License-Identifier: Apache-2.0
"""Command line: `python -m slmfetch fetch|hold|keep|ready|release|list|agent|import`.

Exit codes: 0 done, 1 failed (reason in the termination log), 2 wrong settings, 143 stopped.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from slmfetch import config
from slmfetch.errors import FetchError, Stopped
from slmfetch.log import log
from slmfetch.progress import Tally
from slmfetch.store import Store
from slmwire import env, paths
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.reasons import Reason, Termination

if TYPE_CHECKING:
    from slmfetch.examples import Wanted
    from slmfetch.fetch import Outcome, Purpose

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 143
EXPIRE_SECONDS = 600.0


@dataclass(slots=True)
class _Report:
    """Collects what the termination message says."""

    digest: str = ""
    tally: Tally = field(default_factory=Tally)
    bytes_reused: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parse(arguments)
    # As PID 1 of a container, SIGTERM is ignored unless somebody handles it.
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    os.umask(0o022)
    report = _Report()
    began = time.monotonic()

    def finish(reason: str, message: str) -> None:
        milliseconds = round((time.monotonic() - began) * 1000)
        termination = Termination(
            reason=reason,
            message=message,
            digest=report.digest,
            bytes_downloaded=report.tally.downloaded,
            bytes_reused=report.bytes_reused,
            bytes_from_peers=report.tally.from_peers,
            milliseconds=milliseconds,
        )
        if options.command not in ("ready", "list", "agent", "import"):
            _write_termination(options.termination_log, termination)

    command: Callable[[argparse.Namespace, _Report, Callable[[str, str], None]], int] = options.run
    try:
        return command(options, report, finish)
    except Stopped:
        log("stopped", command=options.command)
        return EXIT_STOPPED
    except (config.ConfigError, ManifestError) as error:
        finish(Reason.UNFIT if isinstance(error, ManifestError) else Reason.INTERNAL_ERROR, str(error))
        log("cannot start", level="error", why=str(error))
        return EXIT_USAGE
    except FetchError as error:
        finish(error.reason, error.message)
        log("failed", level="error", reason=error.reason.value, why=error.message)
        return EXIT_FAILED
    except Exception as error:
        import traceback

        finish(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        log("failed", level="error", reason=Reason.INTERNAL_ERROR.value, why=traceback.format_exc())
        return EXIT_FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slmfetch", description="Model store on a node.")
    parser.add_argument("--store", type=Path, help=f"root of the store (default ${env.STORE_DIR})")
    parser.add_argument("--termination-log", type=Path, help=f"default {paths.TERMINATION_LOG}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("fetch", _run_fetch, "fetch, verify, pin and publish, then exit"),
        ("hold", _run_hold, "the same, then say ready and wait for SIGTERM"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run=run)
        sub.add_argument("--manifest", type=Path, help=f"default ${env.MANIFEST_FILE}")
        sub.add_argument("--serve", action="store_true", help="a server starts on this revision next")
        sub.add_argument("--deep", action="store_true", help="hash cached files again")
        sub.add_argument(
            "--file-root", type=Path, action="append", default=[], help="folder that file:// may point into"
        )
        sub.add_argument(
            "--source-dir",
            type=Path,
            default=Path(paths.SOURCE_DIR),
            help="folder with credentials (default %(default)s)",
        )
        sub.add_argument("--timeout", type=float, default=6 * 3600.0, help="seconds for the whole fetch")
        sub.add_argument("--stall-timeout", type=float, default=30.0, help="seconds of silence per attempt")
        sub.add_argument("--attempts", type=int, default=8, help="attempts without progress")
        sub.add_argument(
            "--reserve-bytes", type=int, help="bytes to leave free (default 5 %%, at most 4 GiB)"
        )
        sub.add_argument("--max-wait", type=float, default=120.0, help="longest single wait in seconds")
    keeping = commands.add_parser("keep", help="put an adapter trained on this node into the store, pinned")
    keeping.set_defaults(run=_run_keep)
    keeping.add_argument("--file", type=Path, required=True, help="the adapter")
    keeping.add_argument(
        "--reserve-bytes", type=int, help="bytes to leave free (default 5 %%, at most 4 GiB)"
    )
    ready = commands.add_parser("ready", help="exit 0 once `hold` or `release` is done")
    ready.set_defaults(run=_run_ready)
    release = commands.add_parser("release", help="drop this deployment's pins, collect, then hold")
    release.set_defaults(run=_run_release)
    release.add_argument("--once", action="store_true", help="exit instead of holding")
    release.add_argument(
        "--keep-models", action="store_true", help="only remove examples, and pins of adapters made of them"
    )
    listing = commands.add_parser("list", help="print what the store holds as JSON")
    listing.set_defaults(run=_run_list)
    agent = commands.add_parser("agent", help="give blobs to the site's other nodes, collect orphans")
    agent.set_defaults(run=_run_agent)
    agent.add_argument("--address", default="", help="address to listen on (default: all, IPv4 and IPv6)")
    agent.add_argument("--port", type=int, default=paths.AGENT_PORT, help="default %(default)s")
    agent.add_argument(
        "--collect-interval", type=float, default=600.0, help="seconds between two collections of orphans"
    )
    bundle = commands.add_parser("import", help="put a bundle (manifest.json and its files) into the store")
    bundle.set_defaults(run=_run_import)
    bundle.add_argument(
        "source", nargs="?", help="folder, uncompressed tar, or - for a tar on standard input"
    )
    bundle.add_argument(
        "--forget", metavar="DIGEST", help="instead: drop the pins of an import (sha256:..., or all)"
    )
    return parser.parse_args(arguments)


def _run_fetch(options: argparse.Namespace, report: _Report, finish: Callable[[str, str], None]) -> int:
    from slmfetch.examples import Wanted, settle_examples
    from slmfetch.fetch import Job, Purpose, fetch
    from slmfetch.keep import forget

    environ = config.current_environment()
    manifest = _read_manifest(options)
    report.digest = manifest.digest
    store = _store(options)
    settings = config.Settings(
        store_dir=store.root,
        size_limit_bytes=config.read_count(environ, env.SIZE_LIMIT_BYTES, default=0),
        reserve_bytes=options.reserve_bytes,
        keep_previous=config.read_count(environ, env.KEEP_PREVIOUS, default=1),
        auth=config.read_auth(environ),
        token_file=config.read_path(environ, env.SOURCE_TOKEN_FILE) or options.source_dir / "token",
        source_dir=options.source_dir,
        s3_region=environ.get(env.S3_REGION) or config.DEFAULT_S3_REGION,
        ca_file=config.read_path(environ, env.CA_FILE),
        file_roots=tuple(options.file_root),
        high_watermark_percent=config.read_count(environ, env.HIGH_WATERMARK_PERCENT, default=0, most=100),
        distribution_file=config.read_path(environ, env.DISTRIBUTION_FILE) or Path(paths.DISTRIBUTION_FILE),
        node=environ.get(env.NODE, ""),
        connections=config.read_count(
            environ,
            env.FETCH_CONNECTIONS,
            default=config.DEFAULT_CONNECTIONS,
            least=1,
            most=config.MAX_CONNECTIONS,
        ),
        timeout_seconds=options.timeout,
        stall_timeout_seconds=options.stall_timeout,
        attempts=options.attempts,
        max_wait_seconds=options.max_wait,
    )
    job = Job(
        owner=config.read_owner(environ),
        revision=config.read_revision(environ),
        manifest=manifest,
        purpose=Purpose.SERVE if options.serve else Purpose.AHEAD,
        deep=options.deep,
    )
    store.prepare()
    examples = _wanted_examples(environ, job.purpose)
    settle_examples(store, job.owner, examples)
    try:
        outcome = fetch(store, job, settings, tally=report.tally)
    finally:
        # After the revision has pinned what it needs, and even when something of that did not come.
        if examples is Wanted.GONE:
            forget(store, job.owner)
    report.bytes_reused = outcome.bytes_reused
    finish("", _summary(outcome))
    log(
        "model is in the store",
        revision=job.revision,
        digest=manifest.digest,
        bytesDownloaded=outcome.bytes_downloaded,
        bytesReused=outcome.bytes_reused,
        bytesFromPeers=outcome.bytes_from_peers,
        bytesPerSecond=outcome.bytes_per_second,
    )
    return 0


def _wanted_examples(environ: Mapping[str, str], purpose: "Purpose") -> "Wanted":
    """By whether this revision's server keeps examples; only one that serves next may remove them."""
    from slmfetch.examples import Wanted
    from slmfetch.fetch import Purpose

    if environ.get(env.EXAMPLES_DIR):
        return Wanted.KEPT
    return Wanted.GONE if purpose is Purpose.SERVE else Wanted.UNTOUCHED


def _summary(outcome: "Outcome") -> str:
    if not outcome.bytes_downloaded:
        return ""
    return (
        f"{outcome.bytes_downloaded} bytes at {outcome.bytes_per_second} bytes/s, "
        f"{outcome.bytes_from_peers} of them from peers"
    )


def _run_hold(options: argparse.Namespace, report: _Report, finish: Callable[[str, str], None]) -> int:
    # /tmp is an emptyDir, which survives a restart of the container.
    _ready_file().unlink(missing_ok=True)
    _run_fetch(options, report, finish)
    return _hold(_store(options))


def _run_release(options: argparse.Namespace, _report: _Report, finish: Callable[[str, str], None]) -> int:
    from slmfetch.examples import remove_examples
    from slmfetch.fetch import release
    from slmfetch.keep import forget

    if not options.once:
        _ready_file().unlink(missing_ok=True)
    owner = config.read_owner(config.current_environment())
    if options.keep_models:
        remove_examples(_store(options), owner)
        forget(_store(options), owner)
    else:
        release(_store(options), owner)
    finish("", "")
    return 0 if options.once else _hold(_store(options))


def _run_keep(options: argparse.Namespace, report: _Report, finish: Callable[[str, str], None]) -> int:
    from slmfetch.keep import keep

    environ = config.current_environment()
    store = _store(options)
    settings = config.Settings(
        store_dir=store.root,
        size_limit_bytes=config.read_count(environ, env.SIZE_LIMIT_BYTES, default=0),
        reserve_bytes=options.reserve_bytes,
        high_watermark_percent=config.read_count(environ, env.HIGH_WATERMARK_PERCENT, default=0, most=100),
    )
    kept = keep(store, config.read_owner(environ), options.file, settings)
    report.digest = f"sha256:{kept.sha256}"
    finish("", "")
    return 0


def _run_ready(_options: argparse.Namespace, _report: _Report, _finish: Callable[[str, str], None]) -> int:
    return 0 if _ready_file().exists() else EXIT_FAILED


def _run_list(options: argparse.Namespace, _report: _Report, _finish: Callable[[str, str], None]) -> int:
    import json

    from slmfetch.inventory import observe_store

    store = _store(options)
    if not store.root.is_dir():
        raise config.ConfigError(f"{store.root} is not a folder; name the store with --store")
    sys.stdout.write(json.dumps(observe_store(store), indent=2) + "\n")
    return 0


def _run_agent(options: argparse.Namespace, _report: _Report, _finish: Callable[[str, str], None]) -> int:
    from slmfetch.agent import run_agent

    store = _store(options)
    if not store.root.is_dir():
        raise config.ConfigError(f"{store.root} is not a folder; mount the node's store there")
    run_agent(
        store,
        address=options.address,
        port=options.port,
        node=config.current_environment().get(env.NODE, ""),
        collect_seconds=options.collect_interval,
    )
    return 0


def _run_import(options: argparse.Namespace, _report: _Report, _finish: Callable[[str, str], None]) -> int:
    from slmfetch.bundle import forget_imports, import_bundle, log_import

    store = _store(options)
    if (options.source is None) == (options.forget is None):
        raise config.ConfigError("name a bundle, or --forget with a digest")
    if options.forget is not None:
        log("imports forgotten", pins=forget_imports(store, options.forget))
        return 0
    log_import(import_bundle(store, sys.stdin.buffer if options.source == "-" else Path(options.source)))
    return 0


def _hold(store: Store) -> int:
    from slmfetch.examples import expire_examples

    with suppress(Stopped):
        _ready_file().touch()
        log("ready")
        while True:
            time.sleep(EXPIRE_SECONDS)
            expire_examples(store)
    return 0


def _ready_file() -> Path:
    return config.read_path(config.current_environment(), env.READY_FILE) or Path(paths.READY_FILE)


def _store(options: argparse.Namespace) -> Store:
    return Store(options.store or config.read_store_dir(config.current_environment()))


def _read_manifest(options: argparse.Namespace) -> Manifest:
    environ = config.current_environment()
    path = options.manifest or config.read_path(environ, env.MANIFEST_FILE) or Path(paths.MANIFEST_FILE)
    try:
        return parse_manifest(path.read_bytes())
    except OSError as error:
        raise config.ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error


def _write_termination(path: Path | None, termination: Termination) -> None:
    # Without --termination-log the file is only written where the kubelet put one.
    flags = os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if path is not None else 0)
    try:
        fd = os.open(path or paths.TERMINATION_LOG, flags, 0o644)
    except OSError:
        return
    with os.fdopen(fd, "w") as stream, suppress(OSError):
        stream.write(termination.to_json())


def _stop(_signum: int, _frame: object) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
