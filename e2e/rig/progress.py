# SPDX-License-Identifier: Apache-2.0
"""Progress lines for long steps: what is being done, and how long it took the last time."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from e2e.rig.paths import cache_dir
from e2e.rig.shell import RigError

_quiet = False


def set_quiet(*, quiet: bool) -> None:
    """Silence the progress lines (tests); durations are recorded all the same."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Print one line to standard error, so that standard output stays machine-readable."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def load_durations() -> dict[str, float]:
    """Seconds that each step took last time; an unreadable file counts as none."""
    try:
        read = json.loads((cache_dir() / "durations.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(read, dict):
        return {}
    return {str(key): float(value) for key, value in read.items() if isinstance(value, int | float)}


def record_duration(step: str, *, seconds: float) -> None:
    """Remember the time for the next run's progress line; written whole, so a reader never sees half."""
    path = cache_dir() / "durations.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = load_durations() | {step: round(seconds, 2)}
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(durations, indent=1, sort_keys=True))
    partial.replace(path)


def describe_expectation(step: str, *, durations: dict[str, float]) -> str:
    """`last time 12.3 s`, or `first time`."""
    return f"last time {durations[step]:.1f} s" if step in durations else "first time"


@contextmanager
def step(text: str, *, key: str | None = None) -> Iterator[None]:
    """Announce a step, run it, print and record its duration; a failed step records none."""
    name = key or text
    say(f"  {text} ({describe_expectation(name, durations=load_durations())}) ...")
    begin = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"  {text}: failed after {time.monotonic() - begin:.1f} s")
        raise
    seconds = time.monotonic() - begin
    record_duration(name, seconds=seconds)
    say(f"  {text}: done in {seconds:.1f} s")


def wait_until(
    what: str, probe: Callable[[], bool], *, timeout_seconds: float, interval_seconds: float = 0.2
) -> float:
    """Poll until `probe` is true and return the seconds waited; raises RigError after the timeout."""
    begin = time.monotonic()
    while not probe():
        if time.monotonic() - begin > timeout_seconds:
            raise RigError(f"{what} did not happen within {timeout_seconds:g} s")
        time.sleep(interval_seconds)
    return time.monotonic() - begin
