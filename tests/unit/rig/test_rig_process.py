# SPDX-License-Identifier: Apache-2.0
"""Process records: written before the program starts, never taken for another process."""

import os
import signal
from pathlib import Path

import pytest

from e2e.rig.process import (
    Daemon,
    ProcessRecord,
    boot_id,
    is_alive,
    parse_record,
    parse_start_ticks,
    read_record,
    stop_all,
)
from e2e.rig.shell import RigError


def _daemon(directory: Path, name: str = "sleeper") -> Daemon:
    return Daemon(name=name, record=directory / f"{name}.pid", log=directory / f"{name}.log")


def _own_record() -> ProcessRecord:
    stat = Path("/proc/self/stat").read_text()
    return ProcessRecord(pid=os.getpid(), start_ticks=parse_start_ticks(stat), boot_id=boot_id())


def test_record_survives_its_text_form() -> None:
    record = ProcessRecord(pid=42, start_ticks=123456, boot_id="b-1")
    assert parse_record(record.to_text()) == record


@pytest.mark.parametrize("text", ["", "42", "42 1", "x 1 b", "42 y b", "1 5 b", "0 5 b", "-4 5 b", "1 2 3 4"])
def test_a_torn_record_is_none(text: str) -> None:
    assert parse_record(text) is None


def test_start_time_is_found_behind_a_hostile_command_name() -> None:
    fields = " ".join(str(number) for number in range(4, 50))
    assert parse_start_ticks(f"7 (a) b) R {fields}") == 22


def test_this_process_is_alive_and_others_with_its_pid_are_not() -> None:
    own = _own_record()
    assert is_alive(own)
    assert not is_alive(ProcessRecord(pid=own.pid, start_ticks=own.start_ticks + 1, boot_id=own.boot_id))
    assert not is_alive(ProcessRecord(pid=own.pid, start_ticks=own.start_ticks, boot_id="another boot"))
    assert not is_alive(None)


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    own = _own_record()
    stale = ProcessRecord(pid=own.pid, start_ticks=own.start_ticks - 1, boot_id=own.boot_id)
    daemon.record.write_text(stale.to_text())
    assert not daemon.signal(signal.SIGKILL)  # we would not get here otherwise
    daemon.stop()
    assert not daemon.record.exists()


def test_start_records_the_program_itself_and_stop_ends_it(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    daemon.start(["sleep", "100"], env={"RIG_TEST": "1"})
    try:
        pid = daemon.pid
        assert pid is not None
        record = read_record(daemon.record)
        assert record is not None and record.pid == pid
        daemon.check()
        for _ in range(100):  # the record is there just before the shell becomes the program
            if daemon.command == ["sleep", "100"]:
                break
            signal.sigtimedwait([], 0.02)
        assert daemon.command == ["sleep", "100"]
    finally:
        daemon.stop(grace_seconds=2)
    assert not daemon.alive
    assert daemon.command == []
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_stop_ends_what_ignores_sigterm_and_what_is_frozen(tmp_path: Path) -> None:
    stubborn, frozen = _daemon(tmp_path, "stubborn"), _daemon(tmp_path, "frozen")
    stubborn.start(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    frozen.start(["sleep", "100"])
    frozen.signal(signal.SIGSTOP)
    stop_all([stubborn, frozen], grace_seconds=0.3)
    assert not stubborn.alive
    assert not frozen.alive


def test_check_shows_the_end_of_the_log_of_what_died(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    daemon.start(["sh", "-c", "echo no such port >&2; exit 3"])
    for _ in range(100):
        if not daemon.alive:
            break
        signal.sigtimedwait([], 0.05)
    with pytest.raises(RigError, match="no such port"):
        daemon.check()
