# SPDX-License-Identifier: Apache-2.0
"""What a check of a spec finds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong, where, and the cure."""

    reason: str
    message: str
