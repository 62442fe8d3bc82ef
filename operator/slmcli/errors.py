# SPDX-License-Identifier: Apache-2.0
"""How a command ends: exit codes, and errors that are one clear line with a cure."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; part of the contract in docs/cli.md."""

    OK = 0
    REFUSED = 1
    """What was asked for was refused, by the operator or because there is nothing to do it to."""
    USAGE = 2
    """Wrong arguments."""
    CLUSTER = 3
    """The API cannot be reached, forbids it, or the object is not there."""
    UNCONFIRMED = 4
    """What was waited for did not come in time: the operator's answer to what was written, or a pod."""
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command with `code`; the text is one line that names the cure."""

    code = Exit.CLUSTER


class UsageError(CliError):
    """Wrong arguments, found after they were parsed."""

    code = Exit.USAGE


class RefusedError(CliError):
    """There is nothing to do what was asked for to."""

    code = Exit.REFUSED


class LateError(CliError):
    """What was waited for did not come in time."""

    code = Exit.UNCONFIRMED


class NotFoundError(CliError):
    """The object, or its type, is not there."""


class ForbiddenError(CliError):
    """The account may not do that."""


class ConflictError(CliError):
    """The object changed since it was read."""


class GoneError(CliError):
    """A watch cannot go on from that resource version."""


class UnreachableError(CliError):
    """No answer, or one that is no answer."""


class BrokenOffError(UnreachableError):
    """An answer began, and its connection ended before it did."""
