# SPDX-License-Identifier: Apache-2.0
"""A scripted API server on a local port, for the adapter that speaks HTTP."""

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import yaml

Body = dict[str, Any]
_PROXY: Final = re.compile(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/proxy(/.*)")


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
    behind: dict[str, str] = field(default_factory=dict)
    """URL of the server in each pod that the proxy subresource reaches, by `POD:PORT`, or by
    `https:POD:PORT` where it speaks TLS."""

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
            found = _PROXY.fullmatch(asked.path)
            if found is not None and found[1] in api.behind:
                api.asked.append(asked)
                self._forward(api.behind[found[1]] + found[2], asked)
                return
            status, text = api.answer(asked)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PATCH = do_GET
        do_POST = do_GET

        def _forward(self, url: str, asked: Asked) -> None:
            """As an API server does: piece by piece, and Authorization stays here."""
            parts = urlsplit(url)
            # Whose certificate it is an API server does not ask a pod either.
            link = (
                HTTPSConnection(parts.netloc, context=ssl._create_unverified_context())  # noqa: S323
                if parts.scheme == "https"
                else HTTPConnection(parts.netloc)
            )
            kept = {k: v for k, v in asked.headers.items() if k not in ("authorization", "host")}
            body = None if asked.body is None else json.dumps(asked.body).encode()
            kept |= {} if body is None else {"content-length": str(len(body))}
            link.request(asked.verb, parts.path, body=body, headers=kept)
            answer = link.getresponse()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type") or "")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            link.close()

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
