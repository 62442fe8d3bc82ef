# SPDX-License-Identifier: Apache-2.0
"""Maps what goes wrong at a source to the reasons that the API knows; done once, here."""

import time
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from slmops.ports.sources import SourceError
from slmwire.reasons import Reason

MAX_RETRY_AFTER_SECONDS: Final = 86_400.0
"""Whatever a source asks for, it is tried once a day; a time beyond the calendar could not even be shown."""


def plain_url(url: str) -> str:
    """The URL without user info, query and fragment: they may hold credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no valid URL)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def build_status_error(
    status: int,
    *,
    where: str,
    has_token: bool,
    retry_after: str | None = None,
    named_in: str = "secretRef",
) -> SourceError:
    """The error that an HTTP status stands for; `where` names the source, fit for a message."""
    wait = parse_retry_after(retry_after or "")
    if status in (401, 403):
        cure = "the token was refused; check the Secret" if has_token else f"name a Secret in {named_in}"
        return SourceError(Reason.ACCESS_DENIED, f"{where} answered {status}: {cure}", permanent=has_token)
    if status == 429:
        asked = f", asking to wait {wait:.0f} s" if wait is not None else ""
        return SourceError(Reason.RATE_LIMITED, f"{where} answered 429{asked}", retry_after_seconds=wait)
    if status in (404, 410):
        private = f" (some hosts answer so for what is private: name a Secret in {named_in})"
        hint = "" if has_token else private
        return SourceError(
            Reason.SOURCE_UNAVAILABLE, f"{where} answered {status}: check the address{hint}", permanent=True
        )
    return SourceError(
        Reason.SOURCE_UNAVAILABLE,
        f"{where} answered {status}",
        retry_after_seconds=wait,
        permanent=400 <= status < 500 and status not in (408, 425),
    )


def parse_retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header (number or date), at most a day; None if it says nothing."""
    text = text.strip()
    if text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
        return min(max(wait, 0.0), MAX_RETRY_AFTER_SECONDS)
    except (ValueError, TypeError, OverflowError):
        return None
