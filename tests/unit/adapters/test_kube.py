# SPDX-License-Identifier: Apache-2.0
"""The client against a scripted HTTP server: paths, bodies, paging, streams and errors."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from slmops.adapters import kube as kube_module
from slmops.adapters.errors import (
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
    error_from_status,
)
from slmops.adapters.kube import KubeClient, load_configuration
from slmops.adapters.resources import DAEMON_SETS, DEPLOYMENTS, EVENTS, NODES, PODS, SECRETS


@dataclass
class Server:
    """Records requests; answers from `answers` in turn, each a (status, body) or bytes of a stream."""

    answers: list[Any] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], str, Any]] = field(default_factory=list)
    raw_paths: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.raw_paths.append(request.raw_path)
        self.requests.append(
            (
                request.method,
                request.path,
                dict(request.query),
                request.headers.get("Content-Type", ""),
                json.loads(text) if text else None,
            )
        )
        answer = self.answers.pop(0) if self.answers else (200, {})
        if isinstance(answer, list):
            response = web.StreamResponse()
            await response.prepare(request)
            for chunk in answer:
                await response.write(chunk)
            return response
        status, body = answer
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, content_type="application/json")


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, KubeClient]]:
    """A scripted API server and a client of it."""
    scripted = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    configuration.api_key["BearerToken"] = "bearer secret"
    client = KubeClient(configuration)
    yield scripted, client
    await client.close()
    await runner.cleanup()


async def test_paths_and_bodies(server: tuple[Server, KubeClient]) -> None:
    scripted, client = server
    body = {"metadata": {"name": "d"}}
    await client.get(NODES, name="n")
    await client.apply(DAEMON_SETS, namespace="ns", body=body)
    await client.merge_patch(NODES, name="n", body={"metadata": {"labels": {"a": None}}})
    await client.replace(DEPLOYMENTS, namespace="ns", body=body, subresource="status")
    await client.create(EVENTS, namespace="ns", body=body)
    await client.delete(PODS, namespace="ns", name="p", uid="u")
    assert [(method, path) for method, path, *_ in scripted.requests] == [
        ("GET", "/api/v1/nodes/n"),
        ("PATCH", "/apis/apps/v1/namespaces/ns/daemonsets/d"),
        ("PATCH", "/api/v1/nodes/n"),
        ("PUT", "/apis/slmops.dev/v1alpha1/namespaces/ns/slmdeployments/d/status"),
        ("POST", "/apis/events.k8s.io/v1/namespaces/ns/events"),
        ("DELETE", "/api/v1/namespaces/ns/pods/p"),
    ]
    apply, patch, delete = scripted.requests[1], scripted.requests[2], scripted.requests[5]
    assert apply[2] == {"fieldManager": "slmops", "force": "true"}
    assert apply[3] == "application/apply-patch+yaml"
    assert apply[4] == body
    assert patch[3] == "application/merge-patch+json"
    assert patch[4] == {"metadata": {"labels": {"a": None}}}, "null must survive: it removes the label"
    assert delete[4] == {"propagationPolicy": "Background", "preconditions": {"uid": "u"}}


async def test_list_goes_through_all_pages(server: tuple[Server, KubeClient]) -> None:
    scripted, client = server
    scripted.answers = [
        (200, {"metadata": {"resourceVersion": "5", "continue": "next"}, "items": [1]}),
        (200, {"metadata": {"resourceVersion": "5"}, "items": [2]}),
    ]
    pages = [page async for page in client.list(PODS, namespace="ns", label_selector="a=b", page_size=1)]
    assert [page["items"] for page in pages] == [[1], [2]]
    assert scripted.requests[0][2] == {"limit": "1", "labelSelector": "a=b"}
    assert scripted.requests[1][2]["continue"] == "next"


async def test_watch_joins_lines_over_chunks_of_any_size(server: tuple[Server, KubeClient]) -> None:
    scripted, client = server
    events = [
        {"type": "ADDED", "object": {"metadata": {"name": "a"}, "big": "x" * (3 << 20)}},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}},
    ]
    stream = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    scripted.answers = [[stream[i : i + 70_001] for i in range(0, len(stream), 70_001)]]
    found = [event async for event in client.watch(NODES, resource_version="5")]
    assert found == events
    query = scripted.requests[0][2]
    assert query["timeoutSeconds"].isdigit()
    assert (query["resourceVersion"], query["allowWatchBookmarks"]) == ("5", "true")


async def test_watch_errors(server: tuple[Server, KubeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, client = server
    expired = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
    scripted.answers = [
        [json.dumps(expired).encode() + b"\n"],
        (410, {"message": "too old resource version"}),
        [b'{"type": "ADDED", "obj\n'],
    ]
    for expected in (Gone, Gone, Unavailable):
        with pytest.raises(expected):
            async with aclosing(client.watch(NODES, resource_version="5")) as events:
                async for _ in events:
                    pass


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid), (401, Forbidden), (403, Forbidden), (404, NotFound), (409, Conflict),
        (410, Gone), (422, Invalid), (429, Unavailable), (500, Unavailable), (503, Unavailable),
        (418, KubeError),
    ],
)  # fmt: skip
async def test_each_status_is_one_error(
    server: tuple[Server, KubeClient], status: int, kind: type[KubeError]
) -> None:
    scripted, client = server
    scripted.answers = [(status, {"kind": "Status", "reason": "Why", "message": "because"})]
    with pytest.raises(KubeError) as caught:
        await client.get(NODES, name="n")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (status, "Why")
    assert "because" in str(caught.value) and "nodes/n" in str(caught.value)


def test_error_without_json_keeps_the_text_short() -> None:
    error = error_from_status(502, "<html>" + "x" * 5000, what="get nodes")
    assert isinstance(error, Unavailable)
    assert len(str(error)) < 600


async def test_answers_that_are_no_objects_are_unavailable(server: tuple[Server, KubeClient]) -> None:
    scripted, client = server
    scripted.answers = [(200, "not json"), (200, "[1]")]
    for _ in range(2):
        with pytest.raises(Unavailable):
            await client.get(NODES, name="n")


async def test_no_server_is_unavailable_and_every_request_is_counted() -> None:
    counted: list[tuple[str, str, int]] = []
    client = KubeClient(
        Configuration(host="http://127.0.0.1:1"),
        on_request=lambda verb, resource, status, _: counted.append((verb, resource, status)),
    )
    with pytest.raises(Unavailable):
        await client.get(NODES, name="n")
    with pytest.raises(Unavailable):
        async for _ in client.watch(NODES, resource_version="1"):
            pass
    await client.close()
    assert counted == [("get", "nodes", 0), ("watch", "nodes", 0)]


async def test_missing_credentials_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeError, match="KUBECONFIG"):
        await load_configuration(str(tmp_path / "missing"))


def test_a_watch_outlives_the_gap_between_two_bookmarks() -> None:
    assert kube_module.WATCH_INACTIVITY_SECONDS > 60


async def test_a_name_never_leads_to_another_object(server: tuple[Server, KubeClient]) -> None:
    scripted, client = server
    await client.get(SECRETS, namespace="shop", name="../../kube-system/secrets/key?x#y")
    assert scripted.raw_paths == [
        "/api/v1/namespaces/shop/secrets/..%2F..%2Fkube-system%2Fsecrets%2Fkey%3Fx%23y"
    ]
    for name in (".", ".."):
        with pytest.raises(ValueError, match="no name of an object"):
            await client.get(SECRETS, namespace="shop", name=name)
    assert len(scripted.requests) == 1
