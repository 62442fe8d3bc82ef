# SPDX-License-Identifier: Apache-2.0
"""A fresh control plane with fake nodes, a lean client for it, and answers for those who measure.

Every side of a comparison gets one of its own, made the same way.
"""

import http.client
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.bench.fleet_numbers import Page, read_page
from e2e.rig import ControlPlane, RigError
from e2e.rig.control_plane import Store
from e2e.rig.fleet import KWOK_CONFIG, apply_fleet, start_fleet
from e2e.rig.paths import instance_dir, instances
from e2e.rig.process import Daemon
from slmwire.metrics import LABEL_VARIANT

NAMESPACE: Final = "bench"
GROUP_LABEL: Final = "bench.slmops.dev/group"
# kubelets report once in five minutes when nothing changes, each at its own time; the tenth of that
# at the low end lets the reports of nodes that were made together drift apart at once.
REPORT_MILLISECONDS: Final = (10_000, 590_000)
NODE_GRACE_SECONDS: Final = 50
"""The controller-manager's own default; the rig's tests have a shorter one."""
_INSTANCE: Final = "fleet-"
_CONTROLLER: Final = "controller"

Body = dict[str, Any]


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Api:
    """One connection to the API server as its administrator: less of a load than a kubectl per question."""

    def __init__(self, plane: ControlPlane) -> None:
        pki = plane.authority
        self._context = ssl.create_default_context(cafile=str(pki.pair.certificate))
        self._context.load_cert_chain(pki.directory / "admin.crt", pki.directory / "admin.key")
        address = urllib.parse.urlsplit(plane.server)
        self._address = (address.hostname or "", address.port or 443)
        self._connection: http.client.HTTPSConnection | None = None

    def apply(self, path: str, body: Mapping[str, Any]) -> None:
        """Server-side apply of one object."""
        self._ask(
            "PATCH",
            f"{path}?fieldManager=bench&force=true",
            body=json.dumps(body),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    def items(self, path: str) -> list[Body]:
        """All items of a list, out of the API server's cache."""
        read = json.loads(self._ask("GET", f"{path}?resourceVersion=0"))
        return list(read["items"])

    def metrics(self) -> Page:
        """What the API server counts."""
        return read_page(self._ask("GET", "/metrics"))

    def _ask(
        self, method: str, path: str, *, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> str:
        for attempt in (1, 2):
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPSConnection(
                        *self._address, context=self._context, timeout=60
                    )
                self._connection.request(method, path, body=body, headers=dict(headers or {}))
                answer = self._connection.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                # The server closes what has been idle for long; every request here may be sent twice.
                self._connection = None
                if attempt == 2:
                    raise RigError(f"{method} {path}: {type(error).__name__} {error}") from error
                continue
            if answer.status >= 300:
                raise RigError(f"{method} {path}: HTTP {answer.status} {text[:500]}")
            return text
        raise AssertionError("unreachable")


class Site:
    """A control plane of its own with `nodes` fake nodes, while the block runs."""

    def __init__(self, name: str, *, nodes: int, nodes_per_group: int, store: Store) -> None:
        # One per run, so that two runs on one machine do not meet.
        self.plane = ControlPlane(
            f"{_INSTANCE}{name}-{os.getpid()}", store=store, node_grace_seconds=NODE_GRACE_SECONDS
        )
        self._nodes = nodes
        self._nodes_per_group = nodes_per_group
        self.evidence = Evidence()

    def __enter__(self) -> "Site":
        take_down_leftovers()
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._down()

    @property
    def controller(self) -> Daemon:
        """The process under test, running or not."""
        return self.plane.daemon(_CONTROLLER)

    def check(self) -> None:
        """Raise RigError when anything that should run does not."""
        for daemon in self.plane.daemons:
            daemon.check()
        if self.controller.record.exists():
            self.controller.check()

    def _up(self) -> None:
        plane = self.plane.up()
        self.api = Api(plane)
        config = plane.directory / "kwok.yaml"
        config.write_text(render_kwok(KWOK_CONFIG.read_text()))
        start_fleet(plane.directory, name=plane.name, kubeconfig=plane.kubeconfig, config=config)
        say(f"{plane.name}: {self._nodes} fake nodes")
        apply_fleet(plane.kubectl, count=self._nodes, labels=self._labels)
        plane.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.evidence.start()
        say(f"{plane.name}: ready")

    def _labels(self, index: int) -> dict[str, str]:
        return {GROUP_LABEL: group_name(index // self._nodes_per_group)}

    def _down(self) -> None:
        self.evidence.stop()
        _take_down(self.plane)


def _take_down(plane: ControlPlane) -> None:
    plane.daemon(_CONTROLLER).stop(grace_seconds=5)
    plane.down()
    # The name is never used again, and a lock per run would pile up.
    instance_dir(plane.name).with_suffix(".lock").unlink(missing_ok=True)


def take_down_leftovers() -> None:
    """End what runs have left behind that were killed before they could."""
    for name in instances():
        owner = name.rpartition("-")[2]
        if name.startswith(_INSTANCE) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _take_down(ControlPlane(name))


def group_name(index: int) -> str:
    """Name of a deployment and of the group of nodes that it runs on."""
    return f"d{index:03d}"


def render_kwok(text: str) -> str:
    """The rig's configuration of the fake nodes with status reports as kubelets make them."""
    documents = list(yaml.safe_load_all(text))
    low, high = REPORT_MILLISECONDS
    delay = {"durationMilliseconds": low, "jitterDurationMilliseconds": high}
    for document in documents:
        if document.get("metadata", {}).get("name") == "node-heartbeat":
            document["spec"]["delay"] = delay
    return yaml.safe_dump_all(documents, sort_keys=False)


class Evidence:
    """A healthy Prometheus: whoever asks learns of 500 good requests of each side, and of no bad one."""

    def __init__(self) -> None:
        self.asked = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Base URL of its API."""
        if self._server is None:
            raise RigError("nobody answers for Prometheus: start it first")
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Serve in a thread."""

        def count() -> None:
            self.asked += 1

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(count))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop serving, if it does."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def answer_query(promql: str, at: float) -> Body:
    """Prometheus' answer to an instant query of either side."""
    if 'code=~"5..' in promql and "/" not in promql:
        result: list[Body] = []
    else:
        value = "0" if "/" in promql else "500"
        result = [{"metric": {"code": "200", LABEL_VARIANT: "int4"}, "value": [at, value]}]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def _handler(count: Callable[[], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            form = urllib.parse.parse_qs(self.rfile.read(length).decode())
            count()
            body = json.dumps(answer_query(form.get("query", [""])[0], time.time())).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: progress is told elsewhere."""

    return Handler


def read_process(pid: int, file: str) -> str:
    """A file below /proc/<pid>; RigError when the process is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError as error:
        raise RigError(f"process {pid} is gone: {error}") from error
