# SPDX-License-Identifier: Apache-2.0
"""A process that confines itself and then tries every way out, and all that a server needs.

`python -m tests.unit.slmserve.confined MODE PORT` (a `SandboxMode`, a TCP port of the one that asks)
writes one line of JSON with the port of its own listening socket, waits for a client of it, and writes
what became of each attempt: an error's name, or `ok`.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmserve.sandbox import SandboxMode, confine, own_architecture

_UDP_PORT = 9
"""Of `discard`: nobody is there."""
_FASTOPEN = 0x2000_0000
_GET_DUMPABLE = 3
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_CHILD = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5).close()
    print("ok")
except OSError as error:
    import errno
    print(errno.errorcode[error.errno])
"""


def _name(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


def _call(number: int, *arguments: Any) -> None:
    """A system call by number; raises OSError."""
    if _LIBRARY.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments)) == -1:
        raise OSError(ctypes.get_errno(), "refused")


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except socket.gaierror:
        return "gaierror"
    except OSError as error:
        return _name(error.errno)
    return "ok"


def _old_call(number: int) -> str:
    """The call `number`(AF_INET, SOCK_STREAM, 0) of the 32-bit instruction set, in a process of its own."""
    # push rbx; mov ebx, 2; mov ecx, 1; xor edx, edx; mov eax, number; int 0x80; pop rbx; ret
    code = (
        b"\x53\xbb\x02\0\0\0\xb9\x01\0\0\0\x31\xd2\xb8" + number.to_bytes(4, "little") + b"\xcd\x80\x5b\xc3"
    )
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    child = os.fork()
    if child == 0:
        result = function()
        os._exit(-result if result < 0 else 0)
    code_of_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # A kernel without this instruction set ends the process.
    return (
        "no such calls"
        if code_of_child == -signal.SIGSEGV
        else _name(code_of_child)
        if code_of_child
        else "ok"
    )


def _out(port: int) -> dict[str, Callable[[], object]]:
    """The ways out, by name. What a library may have opened before is opened here, before the sandbox."""
    tcp4, tcp6, fast4, fast5 = (socket.socket(family) for family in (
        socket.AF_INET, socket.AF_INET6, socket.AF_INET, socket.AF_INET,
    ))  # fmt: skip
    udp, udp6 = socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    turned = socket.create_server(("127.0.0.1", 0))
    unix, path = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), f"{tempfile.mkdtemp()}/socket"
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(path)
    address, discard = ("127.0.0.1", port), ("127.0.0.1", _UDP_PORT)
    number = own_architecture().numbers

    def turn() -> None:
        turned.shutdown(socket.SHUT_RDWR)
        turned.sendto(b"x", _FASTOPEN, address)

    def many(of: socket.socket) -> None:
        # No message at all still is the call.
        _call(number["sendmmsg"], of.fileno(), 0, 0, 0)

    def family(code: int, kind: int = socket.SOCK_DGRAM) -> Callable[[], object]:
        return lambda: socket.socket(code, kind)

    ways: dict[str, Callable[[], object]] = {
        "connect v4": lambda: tcp4.connect(address),
        "connect v6": lambda: tcp6.connect(("::ffff:127.0.0.1", port)),
        "connect udp": lambda: udp.connect(discard),
        "sendto v4": lambda: udp.sendto(b"x", discard),
        "sendto v6": lambda: udp6.sendto(b"x", ("::1", _UDP_PORT)),
        "sendmsg": lambda: udp.sendmsg([b"x"], [], 0, discard),
        "sendmmsg": lambda: many(udp),
        "fast open": lambda: fast4.sendto(b"x", _FASTOPEN, address),
        "fast open without address": lambda: fast5.send(b"x", _FASTOPEN),
        "fast open of a server's socket": turn,
        "unix connect": lambda: unix.connect(path),
        "unix sendto": lambda: unix.sendto(b"x", path),
        "create_connection": lambda: socket.create_connection(address, 5),
        "new tcp": family(socket.AF_INET, socket.SOCK_STREAM),
        "new tcp v6": family(socket.AF_INET6, socket.SOCK_STREAM),
        "new udp": family(socket.AF_INET),
        "new udp v6": family(socket.AF_INET6),
        "new raw": family(socket.AF_INET, socket.SOCK_RAW),
        "new netlink": family(socket.AF_NETLINK, socket.SOCK_RAW),
        "new packet": family(socket.AF_PACKET, socket.SOCK_RAW),
        "new vsock": family(socket.AF_VSOCK, socket.SOCK_STREAM),
        "new crypto": family(socket.AF_ALG, socket.SOCK_SEQPACKET),
        "pair of another family": lambda: socket.socketpair(socket.AF_TIPC, socket.SOCK_SEQPACKET),
    }
    for name in (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "ptrace", "process_vm_readv",
        "process_vm_writev", "pidfd_getfd", "add_key", "request_key", "keyctl", "mount", "fsopen", "setns",
        "bpf",
    ):  # fmt: skip
        ways[name] = lambda name=name: _call(number[name], 99, 0, 0, 0, 0, 0)  # type: ignore[misc]
    if platform.machine() == "x86_64":
        ways["x32"] = lambda: _call(0x4000_0000 + number["socket"], 2, 1, 0)
    return ways


def _within(listener: socket.socket) -> dict[str, Callable[[], object]]:
    """What a server needs, by name."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"got " + connection.recv(100))

    def pair() -> None:
        one, two = socket.socketpair()
        one.send(b"x")
        assert two.recv(1) == b"x"

    def files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "a").write_text("x")
            assert (Path(folder) / "a").read_text() == "x"

    def thread() -> None:
        running = threading.Thread(target=files)
        running.start()
        running.join()

    return {
        "serve": serve,
        "socketpair": pair,
        "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "files": files,
        "thread": thread,
        "process": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    }


def main() -> None:
    mode, port = SandboxMode(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0))
    ways = _out(port)
    begun, go, found = threading.Event(), threading.Event(), {}
    early_socket = socket.socket()

    def early() -> None:
        begun.set()
        go.wait()
        found["thread from before"] = _outcome(lambda: early_socket.connect(("127.0.0.1", port)))

    running = threading.Thread(target=early)
    running.start()
    begun.wait()
    confinement = confine(mode)
    print(json.dumps({"port": listener.getsockname()[1], "confinement": confinement}), flush=True)
    needed = {name: _outcome(attempt) for name, attempt in _within(listener).items()}
    out = {name: _outcome(attempt) for name, attempt in ways.items()}
    go.set()
    running.join()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(port)], capture_output=True, text=True, check=True
    )
    out |= found | {"child process": done.stdout.strip()}
    out["resolve a name"] = _outcome(lambda: socket.getaddrinfo("slmops.invalid", 80))
    if platform.machine() == "x86_64":
        out["32-bit socket"] = _old_call(359)
    dumps = _LIBRARY.prctl(_GET_DUMPABLE, 0, 0, 0, 0)
    print(json.dumps({"needed": needed, "out": out, "dumps": dumps}), flush=True)


if __name__ == "__main__":
    main()
