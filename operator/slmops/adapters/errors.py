# SPDX-License-Identifier: Apache-2.0
"""Errors of the Kubernetes API, mapped once from HTTP and transport to what callers tell apart."""

import json
from typing import Final


class KubeError(Exception):
    """The API server refused a request or could not be asked."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 when there was no answer."""
        self.reason = reason
        """`reason` of the Status object, for example NotFound; empty when there was none."""


class NotFound(KubeError):
    """The object (or its resource type) does not exist."""


class Conflict(KubeError):
    """The object exists already, has changed meanwhile, or is another one of the same name."""


class Gone(KubeError):
    """The resource version or the continue token is too old: list again."""


class Forbidden(KubeError):
    """Credentials are missing, wrong, or do not allow this."""


class NamespaceEnding(Forbidden):
    """Nothing can be created any more: the namespace is being deleted."""


class Invalid(KubeError):
    """The API server understood the request and refuses its content."""


class Unavailable(KubeError):
    """No answer, or one that says to come back later."""


_BY_STATUS: Final[dict[int, type[KubeError]]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Unavailable,
}


def error_from_status(status: int, text: str, *, what: str) -> KubeError:
    """The error for an HTTP answer; `text` is its body, `what` says what was asked."""
    reason, message, ending = "", text.strip()[:500], False
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if isinstance(body, dict):
        reason = str(body.get("reason", ""))
        message = str(body.get("message", "")) or message
        details = body.get("details")
        causes = details.get("causes") if isinstance(details, dict) else None
        ending = any(c.get("reason") == "NamespaceTerminating" for c in causes or () if isinstance(c, dict))
    if ending:
        return NamespaceEnding(f"{what}: {status} {message}", status=status, reason=reason)
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else KubeError)
    return kind(f"{what}: {status} {message}", status=status, reason=reason)
