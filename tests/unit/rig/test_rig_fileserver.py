# SPDX-License-Identifier: Apache-2.0
"""The model file server against a real client: ranges, faults, no way out of its root."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.rig.fileserver import Fault, Server, choose_fault, make_server, parse_range
from e2e.rig.proxy import ProxyHandler

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[http.client.HTTPConnection, Path]]:
    root, faults = tmp_path / "root", tmp_path / "faults.json"
    root.mkdir()
    (root / "model.bin").write_bytes(CONTENT)
    (tmp_path / "secret").write_text("outside")
    server = make_server(root=root, address="127.0.0.1", port=0, faults=faults, certificate=None, key=None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    yield connection, faults
    connection.close()
    server.shutdown()
    thread.join()
    server.server_close()


def _get(
    connection: http.client.HTTPConnection, path: str, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", path, headers=named)
    answer = connection.getresponse()
    return answer, answer.read()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-200", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=5-4", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=-", None),
        ("", None),
    ],
)
def test_range_header(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size=100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_unsatisfiable_range(header: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        parse_range(header, size=100)


def test_the_longest_prefix_decides_the_fault() -> None:
    faults = {"/": {"status": 500}, "/v2/": {"corrupt": True}}
    assert choose_fault(faults, path="/v2/x") == Fault(corrupt=True)
    assert choose_fault(faults, path="/v1/x") == Fault(status=500)
    assert choose_fault({}, path="/v1/x") == Fault()


def test_whole_file_then_a_range_of_the_same_version(
    site: tuple[http.client.HTTPConnection, Path],
) -> None:
    connection, _ = site
    answer, body = _get(connection, "/model.bin")
    assert (answer.status, body, answer.headers["Accept-Ranges"]) == (200, CONTENT, "bytes")
    tag = answer.headers["ETag"]
    answer, body = _get(connection, "/model.bin", Range="bytes=100-", If_Range=tag)
    assert (answer.status, body) == (206, CONTENT[100:])
    assert answer.headers["Content-Range"] == f"bytes 100-{len(CONTENT) - 1}/{len(CONTENT)}"
    answer, body = _get(connection, "/model.bin", Range="bytes=100-", If_Range='"other"')
    assert (answer.status, body) == (200, CONTENT)
    answer, _ = _get(connection, "/model.bin", Range=f"bytes={len(CONTENT)}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "//etc/passwd", "/none", "/"])
def test_nothing_outside_the_root(site: tuple[http.client.HTTPConnection, Path], path: str) -> None:
    answer, body = _get(site[0], path)
    assert (answer.status, body) == (404, b"")


def test_bytes_sent_are_logged_as_far_as_they_came(
    site: tuple[http.client.HTTPConnection, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    connection, faults = site
    _get(connection, "/model.bin", Range="bytes=40-139")
    faults.write_text(json.dumps({"/model": {"cut_after_bytes": 7}}))
    with pytest.raises(http.client.IncompleteRead):
        _get(connection, "/model.bin")
    connection.close()
    faults.unlink()
    _get(connection, "/model.bin")  # the log of the answer before is written by now
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if line.startswith("sent")][:2] == [
        "sent 100 /model.bin",
        "sent 7 /model.bin",
    ]


def test_the_proxy_passes_on_what_is_asked_and_breaks_what_it_is_told(
    site: tuple[http.client.HTTPConnection, Path], tmp_path: Path
) -> None:
    upstream, _ = site
    faults = tmp_path / "proxy-faults.json"
    fields = {"root": tmp_path, "faults_file": faults, "upstream": f"127.0.0.1:{upstream.port}"}
    server = Server(("127.0.0.1", 0), type("BoundProxy", (ProxyHandler,), fields))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    try:
        answer, body = _get(connection, "/model.bin", Range="bytes=100-199")
        assert (answer.status, body) == (206, CONTENT[100:200])
        assert answer.headers["Content-Range"] == f"bytes 100-199/{len(CONTENT)}"
        assert _get(connection, "/none")[0].status == 404
        faults.write_text(json.dumps({"/model": {"status": 429, "retry_after_seconds": 1}}))
        answer, _ = _get(connection, "/model.bin")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        faults.write_text(json.dumps({"/model": {"corrupt": True}}))
        assert _get(connection, "/model.bin")[1][-1] == CONTENT[-1] ^ 0xFF
        faults.write_text(json.dumps({"/model": {"cut_after_bytes": 1000}}))
        with pytest.raises(http.client.IncompleteRead):
            _get(connection, "/model.bin")
    finally:
        connection.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_faults_take_effect_and_heal(site: tuple[http.client.HTTPConnection, Path]) -> None:
    connection, faults = site
    faults.write_text(json.dumps({"/model": {"status": 503, "retry_after_seconds": 2}}))
    answer, _ = _get(connection, "/model.bin")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    faults.write_text(json.dumps({"/model": {"corrupt": True}}))
    _, body = _get(connection, "/model.bin")
    assert body[:-1] == CONTENT[:-1] and body[-1] != CONTENT[-1]
    faults.write_text(json.dumps({"/model": {"token": "t"}}))
    assert _get(connection, "/model.bin")[0].status == 401
    assert _get(connection, "/model.bin", Authorization="Bearer x")[0].status == 403
    assert _get(connection, "/model.bin", Authorization="Bearer t")[1] == CONTENT
    faults.write_text(json.dumps({"/model": {"cut_after_bytes": 1000}}))
    with pytest.raises(http.client.IncompleteRead) as cut:
        _get(connection, "/model.bin")
    assert cut.value.partial == CONTENT[:1000]
    connection.close()
    faults.unlink()
    assert _get(connection, "/model.bin")[1] == CONTENT
