# SPDX-License-Identifier: Apache-2.0
"""Refusals in the form of the OpenAI API, and the failures that end a start."""

from typing import Any

from slmwire.reasons import Reason


class ApiError(Exception):
    """An answer other than 200: `status`, the OpenAI error object, and extra headers.

    Messages name the field, the problem and the cure; they never hold a prompt or an answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code or kind)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}

    def to_body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400 with the field's name."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, *, retry_seconds: int = 5) -> ApiError:
    """503: not now, but soon or elsewhere."""
    return ApiError(
        503,
        message,
        kind="service_unavailable",
        code="service_unavailable",
        headers={"Retry-After": str(retry_seconds)},
    )


def overloaded(*, retry_seconds: int) -> ApiError:
    """429: all slots are busy and the queue is full."""
    return ApiError(
        429,
        f"all slots are busy and the queue is full; try again in {retry_seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_seconds)},
    )


def unauthorized() -> ApiError:
    """401: no key, or one that is not known."""
    return ApiError(
        401,
        "this server needs an API key that it knows; send it as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def internal(error_id: str) -> ApiError:
    """500: our fault; the log has the same identifier."""
    return ApiError(
        500, f"the server failed; the log has error id {error_id}", kind="server_error", code="internal_error"
    )


class StartError(Exception):
    """The model cannot be served; `reason` tells the operator, the message the person."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
