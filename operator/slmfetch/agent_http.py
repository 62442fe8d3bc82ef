# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server for GET and HEAD: bounded threads, bounded headers, bounded time.

The standard library's server reads up to 6 MiB of headers for one request; on a node with little
memory, anybody in the network could use that against us.
"""

import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from slmfetch.log import log

MAX_HEADER_BYTES: Final = 8192
BACKLOG: Final = 64
SEND_BYTES: Final = 1 << 20
THREAD_STACK_BYTES: Final = 256 << 10
SLOWEST_BYTES_PER_SECOND: Final = 16 << 10
"""Whoever reads more slowly than this over a whole answer is cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request without a body; header names in lower case, the last of a name counts."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpan:
    """`length` bytes of the open file `fd` from `offset` on. The server closes `fd`."""

    fd: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer. `body` is not sent for HEAD, but its length is named."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSpan = b""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.body.length if isinstance(self.body, FileSpan) else len(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one agent gives to all and to one."""

    connections: int = 48
    connections_per_client: int = 12
    idle_seconds: float = 15.0
    """How long a connection may say nothing, or take to send its headers."""
    stall_seconds: float = 20.0
    """How long a reader may take nothing of an answer."""


class _BadRequest(Exception):
    """The text goes back to the client."""


class Server:
    """Answers on one address, or on all when it is empty; `port` is the real one when 0 was asked for."""

    def __init__(
        self, *, address: str, port: int, answer: Callable[[Request], Reply], limits: Limits | None = None
    ) -> None:
        self._answer, self._limits = answer, limits or Limits()
        self._lock = threading.Lock()
        self._clients: Counter[str] = Counter()
        self._closed = False
        self.bytes_sent = 0
        """Bytes of files sent so far."""
        self.refused = 0
        """Connections turned away because there were too many."""
        self._listener = _listen(address, port)
        self.port: int = self._listener.getsockname()[1]

    @property
    def connections(self) -> int:
        """Connections open now."""
        with self._lock:
            return self._clients.total()

    def serve(self) -> None:
        """Accept until `close` is called or an exception (a signal's, say) arrives."""
        threading.stack_size(THREAD_STACK_BYTES)
        while True:
            try:
                connection, peer = self._listener.accept()
            except ConnectionError:
                continue  # it hung up before we looked
            except OSError as error:
                if self._closed:
                    return
                # Out of descriptors or memory: it passes when connections end.
                log("cannot accept", level="warning", why=str(error))
                time.sleep(0.1)
                continue
            self._take_on(connection, str(peer[0]))

    def close(self) -> None:
        """Accept no more; answers under way go on."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _take_on(self, connection: socket.socket, client: str) -> None:
        with self._lock:
            full = (
                self._clients.total() >= self._limits.connections
                or self._clients[client] >= self._limits.connections_per_client
            )
            if full:
                self.refused += 1
            else:
                self._clients[client] += 1
        if full:
            with connection, suppress(OSError):
                connection.settimeout(0.0)
                connection.send(_head(503, {"Retry-After": "1", "Connection": "close"}, 0))
            return
        try:
            threading.Thread(target=self._run, args=(connection, client), daemon=True).start()
        except RuntimeError as error:
            log("cannot start a thread", level="warning", why=str(error))
            self._drop(connection, client)

    def _run(self, connection: socket.socket, client: str) -> None:
        try:
            _set_timeout(connection, socket.SO_RCVTIMEO, self._limits.idle_seconds)
            _set_timeout(connection, socket.SO_SNDTIMEO, self._limits.stall_seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._converse(connection)
        except OSError:
            pass  # the client went, or was too slow
        finally:
            self._drop(connection, client)

    def _drop(self, connection: socket.socket, client: str) -> None:
        connection.close()
        with self._lock:
            self._clients[client] -= 1
            if self._clients[client] <= 0:
                del self._clients[client]

    def _converse(self, connection: socket.socket) -> None:
        rest = b""
        while True:
            try:
                head, rest = _read_head(connection, rest, self._limits.idle_seconds)
                if not head:
                    return
                request = _parse(head)
            except _BadRequest as error:
                text = f"{error}\n".encode()
                connection.sendall(_head(400, {"Connection": "close"}, len(text)) + text)
                return
            reply = self._reply(request)
            # After any other method a body may follow, which is not read.
            last = request.headers.get("connection", "").lower() == "close" or reply.status == 405
            self._send(connection, request, reply, last=last)
            if last:
                return

    def _reply(self, request: Request) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return Reply(status=405, headers={"Allow": "GET, HEAD"})
        try:
            return self._answer(request)
        except Exception as error:
            log("an answer failed", level="error", path=request.path, why=f"{type(error).__name__}: {error}")
            return Reply(status=500)

    def _send(self, connection: socket.socket, request: Request, reply: Reply, *, last: bool) -> None:
        body = reply.body
        try:
            headers = {**reply.headers, **({"Connection": "close"} if last else {})}
            connection.sendall(_head(reply.status, headers, reply.length))
            if request.method == "HEAD":
                return
            if isinstance(body, FileSpan):
                self._send_file(connection, body)
            else:
                connection.sendall(body)
        finally:
            if isinstance(body, FileSpan):
                os.close(body.fd)

    def _send_file(self, connection: socket.socket, span: FileSpan) -> None:
        offset, end = span.offset, span.offset + span.length
        deadline = time.monotonic() + self._limits.stall_seconds + span.length / SLOWEST_BYTES_PER_SECOND
        while offset < end:
            # No thread holds the interpreter while the kernel copies.
            count = os.sendfile(connection.fileno(), span.fd, offset, min(end - offset, SEND_BYTES))
            if count == 0:
                raise ConnectionError("the file shrank")  # the client sees a short answer
            offset += count
            with self._lock:
                self.bytes_sent += count
            if time.monotonic() > deadline:
                raise TimeoutError


def _listen(address: str, port: int) -> socket.socket:
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be switched off all the same
            return socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
            )
    return socket.create_server(("", port), backlog=BACKLOG)


def _read_head(connection: socket.socket, rest: bytes, seconds: float) -> tuple[bytes, bytes]:
    """(head without the empty line, what follows it); an empty head when the client is done."""
    data = rest
    deadline = time.monotonic() + seconds
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEADER_BYTES:
            raise _BadRequest(f"the headers are longer than {MAX_HEADER_BYTES} bytes")
        piece = connection.recv(4096)
        if not piece:
            return b"", b""
        if time.monotonic() > deadline:
            raise TimeoutError
        data += piece
    return data[:end], data[end + 4 :]


def _parse(head: bytes) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequest("this is not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise _BadRequest("a header is malformed")
        headers[name.lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise _BadRequest("a request with a body is not taken")
    if words[2] == "HTTP/1.0":
        headers["connection"] = "close"
    return Request(method=words[0], path=words[1], headers=headers)


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    # A 204 has no body by definition.
    all_headers = {**headers, **({} if status == 204 else {"Content-Length": str(length)})}
    lines += [f"{name}: {value}" for name, value in all_headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _set_timeout(connection: socket.socket, option: int, seconds: float) -> None:
    # In the kernel: Python's own timeouts would make sendfile non-blocking.
    whole = int(seconds)
    connection.setsockopt(
        socket.SOL_SOCKET, option, struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
    )
