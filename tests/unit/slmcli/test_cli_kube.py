# SPDX-License-Identifier: Apache-2.0
"""The adapter over HTTP: what is asked, and which error with which cure each failure becomes."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slmcli.__main__ import run
from slmcli.errors import CliError, ConflictError, ForbiddenError, GoneError, NotFoundError, UnreachableError
from slmcli.kube import KubeCluster, connect
from tests.unit.slmcli.cli_objects import build_body, build_status
from tests.unit.slmcli.cli_server import ScriptedApi, serve, write_kubeconfig

ORDERS = "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments/orders"
ALL = "/apis/slmops.dev/v1alpha1/slmdeployments"
IN_SHOP = "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments"


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with serve(ScriptedApi()) as running:
        yield running


@pytest.fixture
def kubeconfig(api: ScriptedApi, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path / "config", api.url)


@pytest.fixture
def cluster(kubeconfig: Path) -> KubeCluster:
    return connect(kubeconfig=str(kubeconfig), context=None).cluster


def _status(code: int, message: str, **more: Any) -> tuple[int, Any]:
    return code, {"kind": "Status", "code": code, "message": message} | more


def test_the_context_gives_the_namespace(kubeconfig: Path, tmp_path: Path, api: ScriptedApi) -> None:
    assert connect(kubeconfig=str(kubeconfig), context=None).namespace == "shop"
    assert connect(kubeconfig=str(kubeconfig), context="there").namespace == "other"
    bare = write_kubeconfig(tmp_path / "bare", api.url, namespace=None)
    assert connect(kubeconfig=str(bare), context=None).namespace == "default"


def test_an_unknown_context_is_named_with_the_known_ones(kubeconfig: Path) -> None:
    with pytest.raises(CliError, match=r"'nowhere'.*here, there") as caught:
        connect(kubeconfig=str(kubeconfig), context="nowhere")
    assert caught.value.code == 2


@pytest.mark.parametrize("text", [None, "", "contexts: 3", "{", "\x00"])
def test_a_kubeconfig_that_is_none_is_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CliError, match="--kubeconfig") as caught:
        connect(kubeconfig=str(path), context=None)
    assert "\n" not in str(caught.value)


def test_credentials_and_pages(api: ScriptedApi, cluster: KubeCluster) -> None:
    api.script(
        ALL,
        (200, {"items": [{"n": 1}], "metadata": {"continue": "more"}}),
        (200, {"items": [{"n": 2}], "metadata": {}}),
    )
    assert cluster.deployments("") == [{"n": 1}, {"n": 2}]
    assert [asked.query.get("continue") for asked in api.asked] == [None, "more"]
    assert api.asked[0].headers["authorization"] == "Bearer secret-token"
    assert api.asked[0].headers["user-agent"] == "kubectl-slm"


def test_what_belongs_to_a_deployment_is_found_by_selectors(api: ScriptedApi, cluster: KubeCluster) -> None:
    paths = {
        "/apis/apps/v1/namespaces/shop/controllerrevisions": lambda: cluster.revisions("shop", "orders"),
        "/api/v1/namespaces/shop/pods": lambda: cluster.pods("shop", "orders"),
        "/api/v1/namespaces/shop/events": lambda: cluster.events("shop", "uid-1"),
        "/api/v1/nodes": cluster.nodes,
        "/apis/slmops.dev/v1alpha1/deviceprofiles": cluster.profiles,
    }
    for path, read in paths.items():
        api.script(path, (200, {"items": [{"path": path}]}))
        assert read() == [{"path": path}]
    queries = [asked.query for asked in api.asked]
    assert queries[0]["labelSelector"] == queries[1]["labelSelector"] == "slmops.dev/deployment=orders"
    assert queries[2]["fieldSelector"] == "involvedObject.uid=uid-1"


def test_a_patch_is_a_merge_patch(api: ScriptedApi, cluster: KubeCluster) -> None:
    api.script(ORDERS, (200, {"metadata": {}}))
    cluster.patch("shop", "orders", {"metadata": {"annotations": {"a": None}}})
    assert api.asked[0].verb == "PATCH"
    assert api.asked[0].headers["content-type"] == "application/merge-patch+json"
    assert api.asked[0].body == {"metadata": {"annotations": {"a": None}}}


def test_a_watch_gives_events_and_keeps_bookmarks_to_itself(api: ScriptedApi, cluster: KubeCluster) -> None:
    event = {"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "8"}}}
    api.script(IN_SHOP, (200, [{"type": "BOOKMARK", "object": {}}, event]))
    assert list(cluster.watch("shop", "orders", "7")) == [event]
    query = api.asked[0].query
    assert query["resourceVersion"] == "7"
    assert query["fieldSelector"] == "metadata.name=orders"


def test_a_watch_that_is_too_old_is_told_apart(api: ScriptedApi, cluster: KubeCluster) -> None:
    expired = {"kind": "Status", "code": 410, "message": "too old resource version"}
    api.script(IN_SHOP, (200, [{"type": "ERROR", "object": expired}]), _status(410, "too old"))
    for _ in range(2):
        with pytest.raises(GoneError):
            list(cluster.watch("shop", "orders", "7"))


@pytest.mark.parametrize(
    ("answer", "error", "cure"),
    [
        (_status(401, "Unauthorized"), ForbiddenError, "log in again"),
        (_status(403, 'User "eve" cannot get slmdeployments'), ForbiddenError, "ask an administrator"),
        (_status(404, 'slmdeployments.slmops.dev "orders" not found', details={"name": "orders"}),
         NotFoundError, "kubectl slm list -A"),
        ((404, "404 page not found"), NotFoundError, "helm install slmops"),
        (_status(409, "the object has been modified"), ConflictError, "run the command again"),
        (_status(500, "etcd is down"), CliError, "answered 500: etcd is down"),
        ((200, "<html>a login page</html>"), UnreachableError, "not JSON"),
        ((200, "[1]"), UnreachableError, "not an object"),
    ],
)  # fmt: skip
def test_each_failure_names_its_cure(
    api: ScriptedApi, cluster: KubeCluster, answer: tuple[int, Any], error: type[CliError], cure: str
) -> None:
    api.script(ORDERS, answer)
    with pytest.raises(error, match=cure) as caught:
        cluster.get("shop", "orders")
    assert caught.value.code == 3
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    cluster = connect(kubeconfig=str(write_kubeconfig(tmp_path / "config", url)), context=None).cluster
    with pytest.raises(UnreachableError, match="cannot be reached"):
        cluster.get("shop", "orders")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        list(cluster.watch("shop", "orders", "1"))


def test_the_whole_program_over_http(
    api: ScriptedApi, kubeconfig: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.script(ORDERS, (200, build_body(build_status())))
    api.script("/api/v1/namespaces/shop/events", _status(403, "events is forbidden"))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert run(["status", "orders"]) == 0
    assert "shop/orders" in capsys.readouterr().out
    assert run(["-n", "other", "status", "orders", "--kubeconfig", str(kubeconfig)]) == 3
    assert capsys.readouterr().err.startswith("error: ")
