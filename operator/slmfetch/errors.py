# SPDX-License-Identifier: Apache-2.0
"""Why a fetch failed."""

from typing import Final

from slmwire.reasons import Reason

_HEAD_CHARACTERS: Final = 1200
_TAIL_CHARACTERS: Final = 400


class FetchError(Exception):
    """A fetch that failed for a reason the operator knows; the message names the cure.

    A source that redirects to an address of many kilobytes must not push out of it what is wrong.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        if len(message) > _HEAD_CHARACTERS + _TAIL_CHARACTERS:
            message = f"{message[:_HEAD_CHARACTERS]} ... {message[-_TAIL_CHARACTERS:]}"
        super().__init__(message)
        self.reason = reason
        self.message = message


class TransferError(FetchError):
    """One attempt at a transfer failed; `retryable` says whether another may help.

    `retry_after_seconds` is what the source asked for, None when it did not say. `stale` says that
    what was fetched so far belongs to another version of the file.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retryable: bool,
        retry_after_seconds: float | None = None,
        stale: bool = False,
    ) -> None:
        super().__init__(reason, message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.stale = stale


class IntegrityError(FetchError):
    """Bytes that are not what the manifest promises."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INTEGRITY_MISMATCH, message)


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception: nothing but the entry point may swallow it."""
