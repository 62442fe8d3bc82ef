# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 with a bounded head: uvicorn's httptools protocol buffers one without end, for ever."""

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from slmserve.errors import ApiError

MAX_HEAD_BYTES: Final = 64 << 10
"""Request line and headers, and what surrounds a body: sizes of its chunks, their extensions, trailers. What
one read brings beyond it is tolerated."""
HEAD_SECONDS: Final = 30.0
"""From the connection, or from the first byte of a later request, to the end of its headers."""
MAX_PIPELINED: Final = 32
"""Requests of a connection that are not answered yet. Those that one read brings wait in memory, and uvicorn
reads again after each answer."""
_PHRASES: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """Hangs up, with an error in OpenAI form, on a head that is too large, too slow or malformed, and on
    more requests at once than `MAX_PIPELINED`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_body = self._body_came = False
        self._frame_bytes = 0
        """Since the last piece of a body, in reads that brought none."""
        self._cycles: list[RequestResponseCycle] = []
        """Requests whose answers are not complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._body_came = False
        super().data_received(data)
        if self._in_body and not self._body_came and not self.transport.is_closing():
            self._frame_bytes += len(data)
            if self._frame_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"trailers and sizes of chunks are larger than {MAX_HEAD_BYTES} bytes")
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the headers are larger than {MAX_HEAD_BYTES} bytes; shorten them")

    def eof_received(self) -> None:
        # The transport is closed next, and writing to a closed one fails.
        self._abandon()

    def _abandon(self) -> bool:
        """What is under way has nowhere to go any more; whether a part of it was sent.

        uvicorn tells the latest request alone, and those before it in a pipeline go on writing.
        """
        waiting = [cycle for cycle in self._cycles if not cycle.response_complete]
        for cycle in waiting:
            cycle.disconnected = True
            cycle.message_event.set()
        return any(cycle.response_started for cycle in waiting)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here, too; nothing reads them, and uvicorn would keep them all.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_head()
        self._in_body, self._frame_bytes = True, 0
        if self.cycle is not None and self.transport.is_closing():
            return  # the parser goes through the rest of what was read
        super().on_headers_complete()
        waiting = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles = waiting if self.cycle is None or self.cycle in waiting else [*waiting, self.cycle]
        if len(self._cycles) > MAX_PIPELINED:
            self.pipeline.clear()
            self._refuse(
                400,
                f"more than {MAX_PIPELINED} requests of this connection wait for their answers; "
                "use more connections, or send one after the other",
            )

    def on_body(self, body: bytes) -> None:
        self._body_came, self._frame_bytes = True, 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not an HTTP/1.1 request that the server understands")

    def _begin_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(408, f"the headers did not come within {HEAD_SECONDS:.0f} s")

    def _refuse(self, status: int, message: str) -> None:
        self._end_head()
        if self._abandon():
            self.transport.close()  # a refusal in the middle of an answer would be read as part of it
            return
        body = json.dumps(ApiError(status, message).to_body()).encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
