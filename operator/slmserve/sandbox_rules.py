# SPDX-License-Identifier: Apache-2.0
"""Which system calls the sandbox denies, as a classic BPF program for seccomp.

The filter closes every way from this process to another machine and leaves all others alone: it is a list of
what is denied, so that a new version of an engine's library cannot break on it. What is denied:

- `connect`; new sockets of every family but AF_UNIX (TCP, UDP, raw, packet, netlink, vsock); pairs of others.
  The listening socket is there before, and accepted ones come from `accept`.
- `sendto` with an address, and MSG_FASTOPEN, which connects while it sends. `sendmsg` and `sendmmsg` whole:
  their address lies in memory, where a filter cannot look, and nothing of the server needs them.
- io_uring, whose operations pass no filter; the keyring, with which the kernel asks for names of machines;
  network file systems and `setns`, and `bpf`, for those that run with more rights than the operator gives.
- `ptrace` and its like: another process of the same user may have no filter. `/proc/PID/mem` is a file, which
  no filter tells from others: there the node's Yama, where it has one, is what keeps such a process apart.
- Every other instruction set (32-bit, x32), whose calls have other numbers.

`execve` stays: a grammar that may take long is compiled in a process of its own. It has the filter, too.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

AF_UNIX: Final = 1
MSG_FASTOPEN: Final = 0x2000_0000
EPERM: Final = 1
ALLOW: Final = 0x7FFF_0000
DENY: Final = 0x0005_0000 | EPERM
"""SECCOMP_RET_ALLOW, and SECCOMP_RET_ERRNO with EPERM."""
LOAD: Final = 0x20
JUMP_EQUAL: Final = 0x15
JUMP_NOT_LESS: Final = 0x35
JUMP_ANY_BIT: Final = 0x45
RETURN: Final = 0x06
"""BPF_LD|BPF_W|BPF_ABS; BPF_JMP|BPF_K with BPF_JEQ, BPF_JGE and BPF_JSET; BPF_RET|BPF_K."""
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16
"""Offsets in `struct seccomp_data`; each argument has 8 bytes."""

DENIED: Final = (
    "connect",
    "sendmsg",
    "sendmmsg",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "add_key",
    "request_key",
    "keyctl",
    "mount",
    "fsopen",
    "setns",
    "bpf",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
)
"""Whatever their arguments are. `socket`, `socketpair` and `sendto` depend on theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the kernel calls an instruction set, and its numbers of system calls."""

    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""
    foreign_from: int
    """Numbers from here on belong to another instruction set (x32)."""
    numbers: Mapping[str, int]


_NEW_NUMBERS: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "fsopen": 430,
    "pidfd_getfd": 438,
}
"""The same everywhere."""

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture(
        audit=0xC000_003E,
        foreign_from=0x4000_0000,
        numbers=_NEW_NUMBERS
        | {
            "socket": 41,
            "connect": 42,
            "sendto": 44,
            "sendmsg": 46,
            "socketpair": 53,
            "ptrace": 101,
            "mount": 165,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "sendmmsg": 307,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "seccomp": 317,
            "bpf": 321,
        },
    ),
    "aarch64": Architecture(
        audit=0xC000_00B7,
        foreign_from=0x4000_0000,
        numbers=_NEW_NUMBERS
        | {
            "mount": 40,
            "ptrace": 117,
            "socket": 198,
            "socketpair": 199,
            "connect": 203,
            "sendto": 206,
            "sendmsg": 211,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "setns": 268,
            "sendmmsg": 269,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "seccomp": 277,
            "bpf": 280,
        },
    ),
}
"""By `platform.machine()`; from asm/unistd_64.h and asm-generic/unistd.h of Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """`struct sock_filter`: the jumps count instructions after the next one."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def to_bytes(self) -> bytes:
        """As the kernel reads it."""
        return struct.pack("=HBBI", self.code, self.if_true, self.if_false, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """An instruction whose jumps go to labels; an empty one is the next line."""

    code: int
    value: int
    if_true: str = ""
    if_false: str = ""
    label: str = ""


def build_program(architecture: Architecture) -> tuple[Instruction, ...]:
    """The filter for one instruction set; every other one is denied."""
    number = architecture.numbers
    lines = [
        _Line(code=LOAD, value=_ARCHITECTURE),
        _Line(code=JUMP_EQUAL, value=architecture.audit, if_false="deny"),
        _Line(code=LOAD, value=_NUMBER),
        _Line(code=JUMP_NOT_LESS, value=architecture.foreign_from, if_true="deny"),
        *(_Line(code=JUMP_EQUAL, value=number[name], if_true="deny") for name in DENIED),
        _Line(code=JUMP_EQUAL, value=number["socket"], if_true="family"),
        _Line(code=JUMP_EQUAL, value=number["socketpair"], if_true="family"),
        _Line(code=JUMP_EQUAL, value=number["sendto"], if_true="sendto", if_false="allow"),
        # The kernel takes family and flags as 32-bit numbers, and ignores the upper half as we do.
        _Line(code=LOAD, value=_argument(0), label="family"),
        _Line(code=JUMP_EQUAL, value=AF_UNIX, if_true="allow", if_false="deny"),
        _Line(code=LOAD, value=_argument(3), label="sendto"),
        _Line(code=JUMP_ANY_BIT, value=MSG_FASTOPEN, if_true="deny"),
        # The address is a pointer: both halves have to be zero.
        _Line(code=LOAD, value=_argument(4)),
        _Line(code=JUMP_EQUAL, value=0, if_false="deny"),
        _Line(code=LOAD, value=_argument(4) + 4),
        _Line(code=JUMP_EQUAL, value=0, if_false="deny"),
        _Line(code=RETURN, value=ALLOW, label="allow"),
        _Line(code=RETURN, value=DENY, label="deny"),
    ]
    return _assemble(lines)


def _argument(index: int) -> int:
    """Where the lower half of an argument lies: both instruction sets are little-endian."""
    return _ARGUMENTS + 8 * index


def _assemble(lines: list[_Line]) -> tuple[Instruction, ...]:
    places = {line.label: index for index, line in enumerate(lines) if line.label}

    def distance(index: int, label: str) -> int:
        return places[label] - index - 1 if label else 0

    return tuple(
        Instruction(
            code=line.code,
            value=line.value,
            if_true=distance(index, line.if_true),
            if_false=distance(index, line.if_false),
        )
        for index, line in enumerate(lines)
    )
