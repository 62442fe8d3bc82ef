# SPDX-License-Identifier: Apache-2.0
"""Reading a request's body, and noticing that its client has left."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.types import Receive

from slmserve.errors import ApiError

CLIENT_LEFT: Final = 499
"""Status that a request counts as when its client did not wait."""
_BODY_SECONDS: Final = 30.0


async def read_body(request: Request, limit: int) -> bytes:
    """The body; raises ApiError 413 beyond `limit` bytes, 408 when it does not come in time."""
    too_large = ApiError(413, f"the body is larger than {limit} bytes; shorten it", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {_BODY_SECONDS:.0f} s", code="timeout") from None
    return b"".join(parts)


async def wait_disconnect(receive: Receive) -> None:
    """Return when the client has hung up; only once the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
