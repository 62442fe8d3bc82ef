# SPDX-License-Identifier: Apache-2.0
"""The process gives up the right to open connections: a seccomp filter that the kernel enforces.

It is installed after the listening socket and before everything that reads a model or a request, so
that whatever takes the process over from there can answer its clients and reach nobody else; its threads
and the processes that it starts have the filter, too, and nothing takes it off. `sandbox_rules` says what
it denies.

By ctypes and not with libseccomp: the filter is some forty instructions, and the images need no more library.
"""

import ctypes
import errno
import logging
import os
import platform
import resource
import socket
import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from slmserve.errors import StartError
from slmserve.sandbox_rules import ARCHITECTURES, Architecture, Instruction, build_program
from slmwire.reasons import Reason

_log = logging.getLogger(__name__)
_SET_DUMPABLE: Final = 4
_SET_NO_NEW_PRIVILEGES: Final = 38
_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_KEEP_SPECULATION: Final = 4
"""SECCOMP_FILTER_FLAG_SPEC_ALLOW: older kernels would slow down every thread with a filter otherwise."""


class SandboxMode(StrEnum):
    """What the settings ask for."""

    AUTO = "auto"
    """Confined where the kernel can; a warning where it cannot."""
    REQUIRED = "required"
    """No start without."""
    OFF = "off"


class Confinement(StrEnum):
    """What became of it."""

    CONFINED = "confined"
    OPEN = "open"


class SandboxError(Exception):
    """The process could not be confined; the message says why."""


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(mode: SandboxMode) -> Confinement:
    """Confine this process for good, with all its threads.

    Raises StartError where that is required and cannot be.
    """
    if mode is SandboxMode.OFF:
        _log.info("the sandbox is off: this server may open connections")
        return Confinement.OPEN
    forbid_dumps()
    try:
        architecture = own_architecture()
        install(architecture, build_program(architecture))
        verify()
    except SandboxError as error:
        if mode is SandboxMode.REQUIRED:
            message = (
                f"the sandbox is required and this node cannot have it: {error}; "
                "use another node, or --sandbox auto"
            )
            raise StartError(Reason.UNFIT, message) from error
        _log.warning("no sandbox, this server may open connections: %s", error)
        return Confinement.OPEN
    _log.info("sandbox on: this server opens no connection")
    return Confinement.CONFINED


def forbid_dumps() -> None:
    """No file of the memory, which holds prompts, when native code crashes; nor one of the node's service.

    A process that this one starts may be dumped to that service again, so one that reads what users wrote
    calls this, too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, *(ctypes.c_ulong(0) for _ in range(4)))


def own_architecture() -> Architecture:
    """Of this process; raises SandboxError for one that there are no rules for."""
    machine = platform.machine()
    found = ARCHITECTURES.get(machine)
    if found is None or struct.calcsize("P") != 8:
        raise SandboxError(f"there are no rules for {machine} with {struct.calcsize('P') * 8}-bit programs")
    return found


def install(architecture: Architecture, program: Sequence[Instruction]) -> None:
    """Add the filter to all threads of this process; raises SandboxError. It stays until the process ends."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_SET_NO_NEW_PRIVILEGES, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) != 0:
        raise SandboxError(f"no_new_privs is refused: {_last_error()}")
    code = b"".join(instruction.to_bytes() for instruction in program)
    described = _Program(len(program), code)
    number = ctypes.c_long(architecture.numbers["seccomp"])
    result = -1
    for flags in (_ALL_THREADS | _KEEP_SPECULATION, _ALL_THREADS):
        result = library.syscall(
            number, ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(flags), ctypes.byref(described)
        )
        if result != -1 or ctypes.get_errno() != errno.EINVAL:
            break
    if result > 0:
        raise SandboxError(f"thread {result} has a filter of its own")
    if result != 0:
        raise SandboxError(f"seccomp is refused: {_last_error()}")


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())


def verify() -> None:
    """Try what has to fail now; raises SandboxError when it does not. Sends nothing."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except PermissionError:
        return
    except OSError as error:
        raise SandboxError(f"the filter does not answer as it should: {error.strerror}") from error
    raise SandboxError("the kernel took the filter and does not enforce it")
