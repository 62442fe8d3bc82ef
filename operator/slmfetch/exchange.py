# SPDX-License-Identifier: Apache-2.0
"""What store agents and fetchers of a site say to each other about a blob, in HTTP headers."""

import re
from enum import StrEnum
from typing import Final

HEX: Final = re.compile(r"[0-9a-f]{64}")

STATE_HEADER: Final = "X-Slm-State"
HAVE_HEADER: Final = "X-Slm-Have"
"""Bytes of the blob, from its beginning, that can be had now."""
MAX_WAIT_SECONDS: Final = 10.0
"""Longest that an agent waits for more bytes (`Prefer: wait=`, RFC 7240)."""

MARKER_SUFFIX: Final = ".peers"
"""A file partial/<hex>.peers says that the fetch in progress waits for peers or takes from them."""


class State(StrEnum):
    """How a node stands to a blob."""

    WHOLE = "whole"
    """Verified, all of it."""
    SOURCE = "source"
    """On its way from the source."""
    PEERS = "peers"
    """A fetch is under way, but it waits for peers or takes from them."""
    IDLE = "idle"
    """Begun, and nobody works on it now."""
