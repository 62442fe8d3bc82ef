# SPDX-License-Identifier: Apache-2.0
"""Why a step or a publication cannot be done."""

import errno
from typing import Final

from slmwire.reasons import Reason

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class OptimizeError(Exception):
    """A failure that the operator knows; the message names the field and the cure."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def unfit(message: str) -> OptimizeError:
    """The recipe does not suit the model, or the model is not what it should be."""
    return OptimizeError(Reason.UNFIT, message)


class JobError(ValueError):
    """The job file or recipe is wrong; the message names the field, the problem and the cure."""
