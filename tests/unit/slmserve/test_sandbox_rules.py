# SPDX-License-Identifier: Apache-2.0
"""The sandbox's filter, run by an interpreter of the kernel's rules over system calls of all kinds."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmserve.sandbox_rules import (
    AF_UNIX,
    ALLOW,
    ARCHITECTURES,
    DENIED,
    DENY,
    JUMP_ANY_BIT,
    JUMP_EQUAL,
    JUMP_NOT_LESS,
    LOAD,
    MSG_FASTOPEN,
    RETURN,
    Instruction,
    build_program,
)

_MACHINES = st.sampled_from(sorted(ARCHITECTURES))
_WORDS = st.integers(0, 2**32 - 1)
_REGISTERS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64), _WORDS.map(lambda high: high << 32))
_ARGUMENTS = st.lists(_REGISTERS, min_size=6, max_size=6)


def _evaluate(program: Sequence[Instruction], data: bytes) -> int:
    """What a classic BPF program returns for a `struct seccomp_data`."""
    held, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack("=HBBI", program[at].to_bytes())
        at += 1
        if code == LOAD:
            (held,) = struct.unpack_from("=I", data, value)
        elif code == RETURN:
            return int(value)
        else:
            met = {
                JUMP_EQUAL: held == value,
                JUMP_NOT_LESS: held >= value,
                JUMP_ANY_BIT: bool(held & value),
            }[code]
            at += if_true if met else if_false


def _judge(machine: str, number: int, arguments: Sequence[int], audit: int | None = None) -> int:
    rules = ARCHITECTURES[machine]
    data = struct.pack("=IIQ6Q", number, rules.audit if audit is None else audit, 0x7F00_0000, *arguments)
    return _evaluate(build_program(rules), data)


def _number(machine: str, name: str) -> int:
    return ARCHITECTURES[machine].numbers[name]


@given(_MACHINES, st.integers(0, 1023), _ARGUMENTS)
def test_only_what_is_listed_is_denied(machine: str, number: int, arguments: list[int]) -> None:
    names = {own: name for name, own in ARCHITECTURES[machine].numbers.items()}
    name = names.get(number, "")
    if name in ("socket", "socketpair"):
        allowed = arguments[0] & 0xFFFF_FFFF == AF_UNIX
    elif name == "sendto":
        allowed = arguments[4] == 0 and not arguments[3] & MSG_FASTOPEN
    else:
        allowed = name not in DENIED
    assert _judge(machine, number, arguments) == (ALLOW if allowed else DENY)


@given(_MACHINES, st.sampled_from(DENIED), _ARGUMENTS)
def test_what_is_listed_is_denied_whatever_its_arguments(
    machine: str, name: str, arguments: list[int]
) -> None:
    assert _judge(machine, _number(machine, name), arguments) == DENY


@given(_MACHINES, st.sampled_from(["socket", "socketpair"]), _WORDS, _ARGUMENTS)
def test_the_family_is_what_the_kernel_takes_for_it(
    machine: str, name: str, high: int, arguments: list[int]
) -> None:
    """The upper half of the register counts for neither."""
    for family in (AF_UNIX, 2, 10, 16, 17, 40):
        given_ = [high << 32 | family, *arguments[1:]]
        assert _judge(machine, _number(machine, name), given_) == (ALLOW if family == AF_UNIX else DENY)


@given(_MACHINES, st.integers(1, 2**64 - 1), _ARGUMENTS)
def test_data_goes_to_a_connection_and_to_no_address(
    machine: str, address: int, arguments: list[int]
) -> None:
    number = _number(machine, "sendto")
    plain = [*arguments[:3], arguments[3] & ~MSG_FASTOPEN, 0, arguments[5]]
    assert _judge(machine, number, plain) == ALLOW
    assert _judge(machine, number, [*plain[:4], address, plain[5]]) == DENY
    assert _judge(machine, number, [*plain[:3], plain[3] | MSG_FASTOPEN, 0, plain[5]]) == DENY


@given(_MACHINES, st.integers(0, 1023), _WORDS, _ARGUMENTS)
def test_another_instruction_set_may_do_nothing(
    machine: str, number: int, audit: int, arguments: list[int]
) -> None:
    own = ARCHITECTURES[machine].audit
    for other in {audit, 0x4000_0003, 0x4000_0028, 0xC000_003E, 0xC000_00B7} - {own}:
        assert _judge(machine, number, arguments, other) == DENY


@given(st.integers(0x4000_0000, 2**32 - 1), _ARGUMENTS)
def test_x32_may_do_nothing(number: int, arguments: list[int]) -> None:
    assert _judge("x86_64", number, arguments) == DENY


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_the_kernel_can_take_the_program(machine: str) -> None:
    program = build_program(ARCHITECTURES[machine])
    assert len(program) < 64
    for index, instruction in enumerate(program):
        assert index + 1 + max(instruction.if_true, instruction.if_false) < len(program) + (
            instruction.code == RETURN
        )
        assert len(instruction.to_bytes()) == 8
    numbers = ARCHITECTURES[machine].numbers
    assert len(set(numbers.values())) == len(numbers)
    assert set(DENIED) < set(numbers)
