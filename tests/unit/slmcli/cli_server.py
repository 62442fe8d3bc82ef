# SPDX-License-Identifier: Apache-2.0
"""A scripted API server on a local port, for the adapter that speaks HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

Body = dict[str, Any]


@dataclass
class Asked:
    """One request."""

    verb: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedApi:
    """Answers by path, the next of a list with each request (the last one stays)."""

    answers: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def script(self, path: str, *answers: tuple[int, Any]) -> None:
        """(HTTP status, body); a list of bodies is a watch stream, text is sent as it is."""
        self.answers[path] = [(status, _encode(body)) for status, body in answers]

    def answer(self, asked: Asked) -> tuple[int, bytes]:
        self.asked.append(asked)
        left = self.answers.get(asked.path)
        if not left:
            return 404, _encode({"kind": "Status", "message": "no such path", "code": 404})
        return left.pop(0) if len(left) > 1 else left[0]


def _encode(body: Any) -> bytes:
    if isinstance(body, list):
        return b"".join(json.dumps(event).encode() + b"\n" for event in body)
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


@contextmanager
def serve(api: ScriptedApi) -> Iterator[ScriptedApi]:
    """Serve it until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            asked = Asked(
                verb=self.command,
                path=parts.path,
                query=dict(parse_qsl(parts.query)),
                headers={key.lower(): value for key, value in self.headers.items()},
                body=body,
            )
            status, text = api.answer(asked)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PATCH = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(path: Path, url: str, *, namespace: str | None = "shop") -> Path:
    """A kubeconfig with the contexts `here` and `there`."""
    context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "secret-token"}}],
                "contexts": [
                    {"name": "here", "context": context},
                    {"name": "there", "context": context | {"namespace": "other"}},
                ],
            }
        )
    )
    return path
