# SPDX-License-Identifier: Apache-2.0
"""Static file server for model artefacts, with ranges, and with faults on demand.

Answers GET and HEAD below one directory; `Range: bytes=a-b` gives 206, an unsatisfiable one 416; the ETag
is made of size and time. Before each answer it reads the fault file (JSON, absent means none):

    {"<path prefix>": {"status": 503, "retry_after_seconds": 2, "bytes_per_second": 65536,
                       "cut_after_bytes": 1000, "corrupt": true, "delay_seconds": 1, "token": "secret"}}

The longest matching prefix counts. `cut_after_bytes` closes the connection inside the body, `corrupt` flips
the last byte of each answer, `token` demands it as bearer token (401 without, 403 with another).

The log has a line for each request and one, `<seconds> <client> sent <bytes> <path>`, for each body.
"""

import argparse
import http.server
import json
import re
import ssl
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Final

_CHUNK_BYTES: Final = 64 * 1024
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong for the paths below one prefix; the defaults are no fault."""

    status: int = 0
    retry_after_seconds: int | None = None
    bytes_per_second: int = 0
    cut_after_bytes: int | None = None
    corrupt: bool = False
    delay_seconds: float = 0
    token: str = ""


def choose_fault(faults: Mapping[str, Any], *, path: str) -> Fault:
    """The fault of the longest prefix of `path`."""
    matching = [prefix for prefix in faults if path.startswith(prefix)]
    return Fault(**faults[max(matching, key=len)]) if matching else Fault()


def parse_range(header: str, *, size: int) -> tuple[int, int] | None:
    """First byte and end (exclusive) that a Range header asks for of `size` bytes.

    None when the header is to be ignored (not one plain byte range); raises ValueError when it cannot be
    satisfied.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= size or end <= begin:
        raise ValueError(f"range {header!r} is outside {size} bytes")
    return begin, end


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one request."""

    protocol_version = "HTTP/1.1"
    root: ClassVar[Path]
    faults_file: ClassVar[Path | None]

    def do_GET(self) -> None:
        """Answer with the file, or the range asked for."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers only."""
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request, with the range: tests count downloads by it."""
        asked = self.headers.get("Range", "-") if hasattr(self, "headers") else "-"
        self._say(f"{format % args} {asked}")

    def _say(self, text: str) -> None:
        # In one write, so that lines of several threads do not mix.
        sys.stderr.write(f"{time.time():.3f} {self.client_address[0]} {text}\n")
        sys.stderr.flush()

    def _fault(self) -> Fault:
        if self.faults_file is None or not self.faults_file.exists():
            return Fault()
        return choose_fault(json.loads(self.faults_file.read_text()), path=self._path())

    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _refuse(self, status: HTTPStatus | int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, *, body: bool) -> None:
        fault = self._fault()
        time.sleep(fault.delay_seconds)
        if self._refused_by(fault):
            return
        file = (self.root / self._path().lstrip("/")).resolve()
        if not file.is_relative_to(self.root) or not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        facts = file.stat()
        tag = f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"'
        try:
            span = parse_range(self.headers.get("Range", ""), size=facts.st_size)
        except ValueError:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{facts.st_size}")
            return
        if self.headers.get("If-Range", tag) != tag:
            span = None
        begin, end = span or (0, facts.st_size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK)
        if span:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{facts.st_size}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.end_headers()
        if body:
            with file.open("rb") as content:
                content.seek(begin)
                self._pump(content.read, length=end - begin, fault=fault)

    def _refused_by(self, fault: Fault) -> bool:
        """Answer in the server's stead where the fault says so; whether it did."""
        if fault.status:
            retry = fault.retry_after_seconds
            self._refuse(fault.status, **({} if retry is None else {"Retry_After": str(retry)}))
            return True
        offered = self.headers.get("Authorization")
        if fault.token and offered != f"Bearer {fault.token}":
            self._refuse(HTTPStatus.UNAUTHORIZED if offered is None else HTTPStatus.FORBIDDEN)
            return True
        return False

    def _pump(self, read: Callable[[int], bytes], *, length: int, fault: Fault) -> None:
        """Send a body of `length` bytes, with the fault's way of going wrong."""
        sent = 0
        limit = length if fault.cut_after_bytes is None else min(length, fault.cut_after_bytes)
        chunk = (
            min(_CHUNK_BYTES, max(1, fault.bytes_per_second // 10))
            if fault.bytes_per_second
            else _CHUNK_BYTES
        )
        try:
            while sent < limit and (data := read(min(chunk, limit - sent))):
                if fault.corrupt and sent + len(data) == length:
                    data = data[:-1] + bytes([data[-1] ^ 0xFF])
                self.wfile.write(data)
                sent += len(data)
                if fault.bytes_per_second:
                    time.sleep(len(data) / fault.bytes_per_second)
        finally:
            self._say(f"sent {sent} {self._path()}")
        if sent < length:
            self.wfile.flush()
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    """One thread per connection; a client that leaves is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a failed request in one line."""
        print(f"{client_address[0]}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


def make_server(
    *, root: Path, address: str, port: int, faults: Path | None, certificate: Path | None, key: Path | None
) -> Server:
    """A server bound to `address`; port 0 picks one. With a certificate it speaks TLS."""
    handler = type("BoundHandler", (Handler,), {"root": root.resolve(), "faults_file": faults})
    server = Server((address, port), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.rig.fileserver", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--faults", type=Path)
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    options = parser.parse_args()
    server = make_server(
        root=options.root,
        address=options.address,
        port=options.port,
        faults=options.faults,
        certificate=options.tls_certificate,
        key=options.tls_key,
    )
    server.serve_forever()


if __name__ == "__main__":
    main()
