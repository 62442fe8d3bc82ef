# SPDX-License-Identifier: Apache-2.0
"""Daemons by record: pid, kernel start time and boot, so that a reused pid is never taken for ours.

A daemon writes its own record before it becomes the program (`sh`, then `exec`), so that no crash of
the rig, at any instruction, leaves a process that nobody knows.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.rig.shell import RigError

_START_FIELD = 22  # of /proc/<pid>/stat, counted from 1: start time in clock ticks since boot
_LAUNCHER = """\
set -u; record=$1; cgroup=$2; shift 2
stat=$(cat /proc/$$/stat); boot=$(cat /proc/sys/kernel/random/boot_id)
rest=${stat##*) }; set_start() { echo "${20}"; }
echo "$$ $(set_start $rest) $boot" > "$record.new" && mv "$record.new" "$record" || exit 97
if [ -n "$cgroup" ]; then echo $$ > "$cgroup/cgroup.procs" || exit 98; fi
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process for all time: `start_ticks` since the boot called `boot_id`."""

    pid: int
    start_ticks: int
    boot_id: str

    def to_text(self) -> str:
        """The one-line form that the launcher writes."""
        return f"{self.pid} {self.start_ticks} {self.boot_id}\n"


def parse_record(text: str) -> ProcessRecord | None:
    """Read a record; None for anything that is not one (a torn or foreign file)."""
    words = text.split()
    if len(words) != 3 or not words[0].isdigit() or not words[1].isdigit() or int(words[0]) <= 1:
        return None
    return ProcessRecord(pid=int(words[0]), start_ticks=int(words[1]), boot_id=words[2])


def parse_start_ticks(stat: str) -> int:
    """Start time from the text of /proc/<pid>/stat; the command name may hold blanks and brackets."""
    after_name = stat[stat.rindex(")") + 1 :].split()
    return int(after_name[_START_FIELD - 3])


def boot_id() -> str:
    """Identity of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_record(path: Path) -> ProcessRecord | None:
    """The record in `path`, or None when there is none."""
    try:
        return parse_record(path.read_text())
    except OSError:
        return None


def is_alive(record: ProcessRecord | None) -> bool:
    """Whether exactly this process still runs (a zombie does not)."""
    if record is None:
        return False
    try:
        stat = Path(f"/proc/{record.pid}/stat").read_text()
    except OSError:
        return False
    if stat[stat.rindex(")") + 2] in "ZX":
        return False
    return parse_start_ticks(stat) == record.start_ticks and boot_id() == record.boot_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A background process known by its record file; the log lies where `log` says."""

    name: str
    record: Path
    log: Path

    @property
    def alive(self) -> bool:
        """Whether the recorded process runs."""
        return is_alive(read_record(self.record))

    @property
    def pid(self) -> int | None:
        """The process id, or None when it does not run."""
        record = read_record(self.record)
        return record.pid if record is not None and is_alive(record) else None

    @property
    def command(self) -> list[str]:
        """The words that the running process was started with; empty when it does not run."""
        pid = self.pid
        try:
            words = b"" if pid is None else Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
        return [word.decode(errors="replace") for word in words.split(b"\0")[:-1]]

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start detached from our session and terminal; raises RigError when it dies at once.

        `cgroup` is a directory with a cgroup.procs file that the process enters before it starts.
        """
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        words = [str(word) for word in command]
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "rig-launch", str(self.record), str(cgroup or ""), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(env or {})},
                cwd=cwd or Path("/"),
            )
        limit = time.monotonic() + 10
        while not self.record.exists():
            if child.poll() is not None or time.monotonic() > limit:
                raise RigError(f"{self.name} did not start (exit {child.poll()}); see {self.log}")
            time.sleep(0.005)
        _children.append(child)

    def check(self) -> None:
        """Raise RigError with the log's last lines when the process is gone."""
        _reap_children()
        if not self.alive:
            raise RigError(f"{self.name} is not running; the end of {self.log}:\n{self.tail()}")

    def tail(self, *, characters: int = 1500) -> str:
        """The end of the log."""
        try:
            return self.log.read_text(errors="replace")[-characters:]
        except OSError:
            return "(no log)"

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the recorded process only; False when it is gone."""
        return _send(read_record(self.record), number)

    def stop(self, *, grace_seconds: float = 10) -> None:
        """End it and wait until it is gone: SIGTERM, after the grace SIGKILL; then drop the record."""
        stop_all([self], grace_seconds=grace_seconds)


_children: list["subprocess.Popen[bytes]"] = []


def _reap_children() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _send(record: ProcessRecord | None, number: signal.Signals) -> bool:
    if record is None or not is_alive(record):
        return False
    try:
        # The pidfd pins the process: between the check below and the signal, the pid cannot be reused.
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(record):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def stop_all(daemons: Sequence[Daemon], *, grace_seconds: float = 10) -> None:
    """Stop several at once; raises RigError if one outlives SIGKILL by ten seconds."""
    for daemon in daemons:
        if daemon.signal(signal.SIGTERM):
            daemon.signal(signal.SIGCONT)  # a process that a fault has stopped handles no SIGTERM
    _wait_gone(daemons, seconds=grace_seconds)
    for daemon in daemons:
        daemon.signal(signal.SIGKILL)
    left = _wait_gone(daemons, seconds=10)
    if left:
        raise RigError(f"still running after SIGKILL: {', '.join(d.name for d in left)}")
    for daemon in daemons:
        daemon.record.unlink(missing_ok=True)


def _wait_gone(daemons: Sequence[Daemon], *, seconds: float) -> list[Daemon]:
    limit = time.monotonic() + seconds
    while True:
        _reap_children()
        left = [daemon for daemon in daemons if daemon.alive]
        if not left or time.monotonic() > limit:
            return left
        time.sleep(0.05)
