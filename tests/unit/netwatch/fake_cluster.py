# SPDX-License-Identifier: Apache-2.0
"""As much of an API server on loopback as an operator needs to start: lists, watches, writes of any kind."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from slmops.adapters.resources import DEPLOYMENTS, DEVICE_PROFILES, MODELS

Body = dict[str, Any]


@dataclass(slots=True)
class FakeCluster:
    """Objects by path; `asked` is every request so far as `VERB path`."""

    objects: dict[str, Body] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0
    ending: threading.Event = field(default_factory=threading.Event)

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads here."""
        server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [server],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def list_of(self, path: str) -> Body:
        """What a GET of a collection gives."""
        items = [body for place, body in self.objects.items() if place.rpartition("/")[0] == path]
        return {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}


def _discovery(path: str) -> Body | None:
    """What the API says of itself."""
    group = DEPLOYMENTS.group
    version = {"groupVersion": f"{group}/{DEPLOYMENTS.version}", "version": DEPLOYMENTS.version}
    described = {"name": group, "versions": [version], "preferredVersion": version}
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {"kind": "APIGroupList", "groups": [described]}
    if path == f"/apis/{group}":
        return {"kind": "APIGroup"} | described
    if path in ("/api/v1", f"/apis/{group}/{DEPLOYMENTS.version}"):
        ours = (DEPLOYMENTS, MODELS, DEVICE_PROFILES) if group in path else ()
        verbs = ["get", "list", "watch", "patch", "create", "update", "delete"]
        resources = [
            {"name": r.plural, "singularName": "", "kind": r.kind, "namespaced": r.namespaced, "verbs": verbs}
            for r in ours
        ]
        return {"kind": "APIResourceList", "groupVersion": path.partition("/")[2], "resources": resources}
    return None


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: Body, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.cluster.asked.append(f"GET {parts.path}")
        query = parse_qs(parts.query)
        if query.get("watch", ["false"])[0].lower() in ("true", "1"):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            self.cluster.ending.wait()
            return
        found = _discovery(parts.path) or self.cluster.objects.get(parts.path)
        if found is not None:
            self._answer(found)
        elif len(parts.path.split("/")) % 2 == (0 if parts.path.startswith("/apis/") else 1) and (
            "/namespaces/" in parts.path
        ):
            self._answer({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}, 404)
        else:
            self._answer(self.cluster.list_of(parts.path))

    def _write(self) -> None:
        path = urlsplit(self.path).path
        self.cluster.asked.append(f"{self.command} {path}")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.command == "POST":
            path = f"{path}/{body['metadata'].get('name', 'made')}"
        before = self.cluster.objects.get(path, {})
        metadata = {"resourceVersion": "2", "uid": "u"} | (before.get("metadata") or {})
        if isinstance(body, dict):
            metadata |= body.get("metadata") or {}
            body = before | body | {"metadata": metadata}
            self.cluster.objects[path] = body
        self._answer(body if isinstance(body, dict) else before)

    do_POST = do_PUT = do_PATCH = _write


@contextlib.contextmanager
def serve_cluster() -> Iterator[FakeCluster]:
    """Run one until the block ends."""
    cluster = FakeCluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    cluster.port = server.server_address[1]
    running = threading.Thread(target=server.serve_forever, daemon=True)
    running.start()
    try:
        yield cluster
    finally:
        cluster.ending.set()
        server.shutdown()
        server.server_close()
