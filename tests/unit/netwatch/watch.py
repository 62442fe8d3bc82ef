# SPDX-License-Identifier: Apache-2.0
"""Runs Python and writes down every address that it, its threads or its children try to reach.

`python -m tests.unit.netwatch.watch REPORT ARGUMENT...` runs `python ARGUMENT...`, adds one `Attempt` as a
line of JSON to REPORT for each, refuses those that would leave this machine, and ends as the program does.
The kernel holds each call until it was looked at (a seccomp filter with a listener), so none is missed; it
needs no rights and no tools. Linux 5.5 or later.

Not seen: what a process does after it has a filter of its own that denies (so watch a server without its
sandbox), and data on a connection that is there. io_uring is refused, since nothing of it could be seen.
"""

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TextIO

from slmserve.sandbox import own_architecture
from slmserve.sandbox_rules import (
    ALLOW,
    DENY,
    JUMP_EQUAL,
    JUMP_NOT_LESS,
    LOAD,
    RETURN,
    Architecture,
    Instruction,
)

_ASK: Final = 0x7FC0_0000
_NEW_LISTENER: Final = 8
_CONTINUE: Final = 1
_RECEIVE: Final = 0xC050_2100
_SEND: Final = 0xC018_2101
"""SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_USER_NOTIF_FLAG_CONTINUE, two ioctls."""
_NOTICE: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_MESSAGE_BYTES: Final = 64
_MOST_MESSAGES: Final = 64
_DNS_PORT: Final = 53
_WATCHED: Final = ("connect", "sendto", "sendmsg", "sendmmsg")
_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call that names an address; `port` is 0 where the family has none."""

    call: str
    family: str
    address: str
    port: int
    command: str
    """Name of the thread that made it."""

    @property
    def leaves(self) -> bool:
        """Whether it is for another machine, or asks for a name, which asks others."""
        if self.family == "unix":
            return any(part in self.address for part in ("nscd", "resolve", "dns"))
        if self.family not in ("inet", "inet6") or self.port == _DNS_PORT:
            return True
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return not (mapped or address).is_loopback


def read_report(path: Path) -> list[Attempt]:
    """What was written so far."""
    return [Attempt(**json.loads(line)) for line in path.read_text().splitlines()]


def _build_program(architecture: Architecture) -> tuple[Instruction, ...]:
    numbers = architecture.numbers
    watched = [Instruction(code=JUMP_EQUAL, value=numbers[name]) for name in _WATCHED]
    refused = Instruction(code=JUMP_EQUAL, value=numbers["io_uring_setup"])
    lines = [
        Instruction(code=LOAD, value=4),
        Instruction(code=JUMP_EQUAL, value=architecture.audit),
        Instruction(code=LOAD, value=0),
        Instruction(code=JUMP_NOT_LESS, value=architecture.foreign_from),
        refused,
        *watched,
        Instruction(code=RETURN, value=ALLOW),
        Instruction(code=RETURN, value=DENY),
        Instruction(code=RETURN, value=_ASK),
    ]
    deny, ask = len(lines) - 2, len(lines) - 1

    def aim(index: int, line: Instruction) -> Instruction:
        to_deny, to_ask = deny - index - 1, ask - index - 1
        if line in watched:
            return Instruction(code=line.code, value=line.value, if_true=to_ask)
        if line == refused or line.code == JUMP_NOT_LESS:
            return Instruction(code=line.code, value=line.value, if_true=to_deny)
        if line.code == JUMP_EQUAL:
            return Instruction(code=line.code, value=line.value, if_false=to_deny)
        return line

    return tuple(aim(index, line) for index, line in enumerate(lines))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _install(architecture: Architecture) -> int:
    """Filter the calling thread, and no other; returns the listener."""
    program = _build_program(architecture)
    described = _Program(len(program), b"".join(line.to_bytes() for line in program))
    if _LIBRARY.prctl(38, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    number = ctypes.c_long(architecture.numbers["seccomp"])
    arguments = (ctypes.c_ulong(1), ctypes.c_ulong(_NEW_LISTENER), ctypes.byref(described))
    listener: int = _LIBRARY.syscall(number, *arguments)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _start(arguments: list[str], architecture: Architecture) -> tuple[subprocess.Popen[bytes], int]:
    """The program under the filter, and the listener.

    A thread of ours takes the filter on and starts the program, which inherits it.
    """
    started: list[tuple[subprocess.Popen[bytes], int]] = []
    ready = threading.Event()

    def run() -> None:
        try:
            listener = _install(architecture)
            process = subprocess.Popen([sys.executable, *arguments], preexec_fn=_end_with_parent)
            started.append((process, listener))
        finally:
            ready.set()
        # The program is told that its parent is gone when the thread is that started it.
        process.wait()

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    return started[0]


def _end_with_parent() -> None:
    _LIBRARY.prctl(1, signal.SIGKILL, 0, 0, 0)


def _watch(listener: int, process: subprocess.Popen[bytes], names: dict[int, str], report: TextIO) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        ended = process.poll() is not None
        events = poll.poll(0 if ended else 50)
        if not any(event & select.POLLIN for _, event in events):
            if ended or events:
                return
            continue
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
        except OSError as error:
            # The caller was ended while it waited.
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            raise
        identifier, thread, _, number, _, _, *arguments = _NOTICE.unpack(notice)
        attempts = list(_attempts(names[number], thread, arguments))
        for attempt in attempts:
            report.write(json.dumps(asdict(attempt)) + "\n")
        report.flush()
        if any(attempt.leaves for attempt in attempts):
            answer = _ANSWER.pack(identifier, 0, -errno.ENETUNREACH, 0)
        else:
            answer = _ANSWER.pack(identifier, 0, 0, _CONTINUE)
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(listener, _SEND, answer)


def _attempts(call: str, thread: int, arguments: list[int]) -> Iterator[Attempt]:
    command = _read_name(thread)
    for place, length in _addresses(call, thread, arguments):
        if place and length:
            family, address, port = _parse(_read(thread, place, min(length, 128)))
            yield Attempt(call=call, family=family, address=address, port=port, command=command)


def _addresses(call: str, thread: int, arguments: list[int]) -> Iterable[tuple[int, int]]:
    """Where addresses lie in the caller's memory, and how long they are; place 0: there is none."""
    if call == "connect":
        return [(arguments[1], arguments[2])]
    if call == "sendto":
        return [(arguments[4], arguments[5])]
    count = 1 if call == "sendmsg" else min(arguments[2], _MOST_MESSAGES)
    places = [arguments[1] + _MESSAGE_BYTES * index for index in range(count)]
    return [struct.unpack("=QI", _read(thread, place, 12)) for place in places]


def _read(thread: int, place: int, length: int) -> bytes:
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(place)
        return memory.read(length)


def _read_name(thread: int) -> str:
    return Path(f"/proc/{thread}/comm").read_text().strip()


def _parse(data: bytes) -> tuple[str, str, int]:
    (family,) = struct.unpack_from("=H", data)
    if family == socket.AF_INET:
        return "inet", socket.inet_ntop(family, data[4:8]), int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET6:
        return "inet6", socket.inet_ntop(family, data[8:24]), int.from_bytes(data[2:4], "big")
    if family == socket.AF_UNIX:
        path = data[2:]
        # An abstract name begins with a zero byte and is all of it; a path ends at one.
        path = b"@" + path[1:] if path[:1] == b"\0" else path.partition(b"\0")[0]
        return "unix", path.decode("utf-8", "replace"), 0
    return str(family), data[2:].hex(), 0


def main() -> int:
    """The exit code of the program."""
    report, arguments = Path(sys.argv[1]), sys.argv[2:]
    architecture = own_architecture()
    names = {architecture.numbers[name]: name for name in _WATCHED}
    with report.open("w", encoding="utf-8") as file:
        process, listener = _start(arguments, architecture)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda given, _: process.send_signal(given))
        _watch(listener, process, names, file)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
