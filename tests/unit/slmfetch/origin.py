# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server on loopback that misbehaves as told."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How one request is answered; the default is as it should be."""

    status: int = 0
    """Answer with this status and no file."""
    headers: tuple[tuple[str, str], ...] = ()
    truncate_after: int = -1
    """Hang up after this many bytes of body."""
    hang_seconds: float = 0.0
    """Say nothing for this long before the body."""
    flip_byte_at: int = -1
    """Offset in the file of a byte that is sent wrong."""
    ignore_range: bool = False
    no_length: bool = False
    extra_bytes: int = 0
    redirect: str = ""
    content_range: str = ""


@dataclass(slots=True)
class Seen:
    """One request."""

    path: str
    headers: dict[str, str]
    form: str = ""
    start: int = 0
    sent: int = 0
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer, for what is no file: a token service, a challenge."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(slots=True)
class Origin:
    """Files by path, faults by path (used up in order), and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Path -> bearer token without which it answers 401."""
    services: dict[str, Callable[[Seen], Reply | None]] = field(default_factory=dict)
    """Path prefix -> who answers in place of the files; None lets the file through."""
    keep_alive: bool = False
    seen: list[Seen] = field(default_factory=list)
    rangeless: set[str] = field(default_factory=set)
    """Paths whose ranges are not served."""
    bytes_per_second: float = 0.0
    """Of each connection."""
    scheme: str = "http"
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def bytes_sent(self) -> int:
        return sum(seen.sent for seen in self.seen)

    def take_fault(self, path: str) -> Fault:
        with self.lock:
            queue = self.faults.get(path)
            return queue.pop(0) if queue else Fault()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        # A small buffer: what the kernel takes over from us but never delivers would count as sent.
        import socket

        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        origin = self.origin
        path = self.path.partition("?")[0]
        if path.startswith("http://"):  # as a proxy
            path = "/" + path.split("/", 3)[3]
        seen = Seen(path=self.path, headers={k.lower(): v for k, v in self.headers.items()})
        seen.form = self.rfile.read(int(seen.headers.get("content-length", "0"))).decode()
        origin.seen.append(seen)
        self.close_connection = not origin.keep_alive
        with contextlib.suppress(ConnectionError):
            self._respond(origin, path, seen, body=body)

    def _respond(self, origin: Origin, path: str, seen: Seen, *, body: bool) -> None:
        for prefix, service in origin.services.items():
            if path.startswith(prefix) and (reply := service(seen)) is not None:
                return self._status(seen, reply.status, reply.headers, reply.body)
        fault = origin.take_fault(path)
        content = origin.files.get(path)
        token = origin.tokens.get(path)
        if fault.redirect:
            return self._status(seen, 302, (("Location", fault.redirect),))
        if fault.status:
            return self._status(seen, fault.status, fault.headers)
        if token is not None and seen.headers.get("authorization") != f"Bearer {token}":
            return self._status(seen, 401, ())
        if content is None:
            return self._status(seen, 404, ())
        etag = origin.etags.get(path, '"v1"')
        wanted = seen.headers.get("range", "")
        matches = seen.headers.get("if-range", etag) == etag
        start, end = 0, len(content)
        ranged = bool(wanted and matches and not fault.ignore_range and path not in origin.rangeless)
        if ranged:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end) if last else end
            if start >= len(content):
                return self._status(seen, 416, (("Content-Range", f"bytes */{len(content)}"),))
        seen.start = start
        seen.status = 206 if ranged else 200
        self.send_response(seen.status)
        if ranged:
            spans = fault.content_range or f"bytes {start}-{end - 1}/{len(content)}"
            self.send_header("Content-Range", spans)
        if etag:
            self.send_header("ETag", etag)
        for name, value in fault.headers:
            self.send_header(name, value)
        if not fault.no_length:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if not body:
            return None
        time.sleep(fault.hang_seconds)
        data = content[start:end]
        if start <= fault.flip_byte_at < end:
            index = fault.flip_byte_at - start
            data = data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]
        self._send(seen, data + b"x" * fault.extra_bytes, fault)
        return None

    def _send(self, seen: Seen, data: bytes, fault: Fault) -> None:
        if fault.truncate_after >= 0:
            data = data[: fault.truncate_after]
            self.close_connection = True
        for index in range(0, len(data), 8192):
            piece = data[index : index + 8192]
            self.wfile.write(piece)
            seen.sent += len(piece)
            if self.origin.bytes_per_second:
                time.sleep(len(piece) / self.origin.bytes_per_second)

    def _status(
        self, seen: Seen, status: int, headers: tuple[tuple[str, str], ...], body: bytes = b""
    ) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed is what some tests are about


@contextlib.contextmanager
def serve_origin(tls: ssl.SSLContext | None = None) -> Iterator[Origin]:
    """Run an origin until the block ends."""
    origin = Origin(scheme="https" if tls else "http")
    handler = type("Handler", (_Handler,), {"origin": origin})
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    origin.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
