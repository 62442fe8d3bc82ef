# SPDX-License-Identifier: Apache-2.0
"""Credentials: what is sent where, what is never sent, what is said when they are refused."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from slmfetch.config import Auth
from slmfetch.connect import Session
from slmfetch.errors import FetchError
from slmfetch.fetch import fetch
from slmfetch.oci import Oci
from slmfetch.store import Store
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason
from slmwire.registry import find_login, parse_challenges
from tests.unit.slmfetch.kit import job_of, manifest_of, noise, settings_of, start_fetcher, tree_content
from tests.unit.slmfetch.origin import Fault, Origin, Reply, Seen, serve_origin

DATA = noise(200_000, 50)
SHA = hashlib.sha256(DATA).hexdigest()
BLOB = f"/v2/team/model/blobs/sha256:{SHA}"
USER = "Basic " + base64.b64encode(b"robot:pa:ss").decode()


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def docker(folder: Path, registry: str, **row: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": {registry: row}}))
    return folder


def blob_of(origin: Origin) -> Manifest:
    origin.files[BLOB] = DATA
    return Manifest(
        files=(ManifestFile(path="model.onnx", size=len(DATA), sha256=SHA, url=f"{origin.url}{BLOB}"),)
    )


def registry(origin: Origin, realm: str, tokens: set[str]) -> Callable[[Seen], Reply | None]:
    """Lets in who has one of `tokens`, names the realm to the others."""

    def answer(seen: Seen) -> Reply | None:
        if seen.headers.get("authorization", "") in {f"Bearer {token}" for token in tokens}:
            return None
        text = f'Bearer realm="{realm}",service="registry.test",scope="repository:team/model:pull"'
        return Reply(status=401, headers=(("WWW-Authenticate", text),))

    origin.services["/v2/"] = answer
    return answer


def issuer(origin: Origin, tokens: list[str], *, wanted: str) -> list[Seen]:
    """A token service that gives out `tokens` in turn to who sends `wanted`."""
    asked: list[Seen] = []

    def answer(seen: Seen) -> Reply:
        asked.append(seen)
        if seen.headers.get("authorization", "") != wanted:
            return Reply(status=401)
        token = tokens[min(len(asked), len(tokens)) - 1]
        return Reply(body=json.dumps({"token": token, "expires_in": 300}).encode())

    origin.services["/token"] = answer
    return asked


def run(store: Store, manifest: Manifest, **changes: object) -> None:
    fetch(store, job_of(manifest), settings_of(store, **changes))
    assert tree_content(store, manifest) == {"model.onnx": DATA}


def refused(store: Store, manifest: Manifest, **changes: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(store, job_of(manifest), settings_of(store, **changes))
    return caught.value


def test_basic_is_sent_to_the_origin_and_not_along_a_redirect(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    folder = put(tmp_path / "source", username="robot\n", password="pa:ss\n")
    with serve_origin() as storage:
        storage.files["/cdn"] = DATA
        origin.faults["/m/model.onnx"] = [Fault(redirect=f"{storage.url}/cdn")]
        manifest = manifest_of({"model.onnx": DATA}, f"{origin.url}/m")
        run(store, manifest, auth=Auth.BASIC, source_dir=folder)
        assert origin.seen[0].headers["authorization"] == USER
        assert "authorization" not in storage.seen[0].headers


def test_real_program_takes_the_kind_and_the_folder(origin: Origin, store: Store, tmp_path: Path) -> None:
    folder = put(tmp_path / "source", username="robot", password="pa:ss", token="t0ken")
    origin.files["/m/model.onnx"] = DATA
    manifest = manifest_of({"model.onnx": DATA}, f"{origin.url}/m")
    for kind in ("basic", "bearer"):
        origin.faults["/m/model.onnx"] = [Fault(status=403)]
        command = ["fetch", "--source-dir", str(folder)]
        process = start_fetcher(command, store, tmp_path, manifest, SLM_SOURCE_AUTH=kind)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 1, output
        assert "pa:ss" not in output and "t0ken" not in output
    assert [seen.headers["authorization"] for seen in origin.seen] == [USER, "Bearer t0ken"]


def test_s3_signs_each_request_and_not_those_to_another_origin(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    folder = put(tmp_path / "source", accessKeyId="AKID", secretAccessKey="s3cret", sessionToken="sess")
    origin.files["/bucket/a%20b"] = DATA
    origin.faults["/bucket/a%20b"] = [Fault(truncate_after=100_000)]
    file = ManifestFile(path="model.onnx", size=len(DATA), sha256=SHA, url=f"{origin.url}/bucket/a%20b")
    run(store, Manifest(files=(file,)), auth=Auth.S3, source_dir=folder, s3_region="eu-north-1")
    for seen in origin.seen:
        assert "Credential=AKID/" in seen.headers["authorization"]
        assert "/eu-north-1/s3/aws4_request" in seen.headers["authorization"]
        assert seen.headers["x-amz-security-token"] == "sess"
        assert "s3cret" not in str(seen.headers)
    assert [seen.start for seen in origin.seen] == [0, 100_000]


def test_s3_refusal_names_the_servers_own_reason(origin: Origin, store: Store, tmp_path: Path) -> None:
    folder = put(tmp_path / "source", accessKeyId="AKID", secretAccessKey="s3cret")
    body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    origin.services["/"] = lambda _seen: Reply(status=403, body=body)
    manifest = manifest_of({"model.onnx": DATA}, f"{origin.url}/bucket")
    error = refused(store, manifest, auth=Auth.S3, source_dir=folder, s3_region="eu-north-1")
    assert error.reason is Reason.ACCESS_DENIED
    assert "RequestTimeTooSkewed" in error.message and "clock" in error.message
    assert "s3cret" not in error.message


def test_registry_token_is_asked_for_once_and_used_for_the_run(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    asked = issuer(origin, ["t1"], wanted=USER)
    registry(origin, f"{origin.url}/token", {"t1"})
    folder = docker(
        tmp_path / "source", f"127.0.0.1:{origin.port}", auth=base64.b64encode(b"robot:pa:ss").decode()
    )
    manifest = blob_of(origin)
    origin.faults[BLOB] = [Fault(truncate_after=90_000)]
    run(store, manifest, auth=Auth.OCI, source_dir=folder)
    assert len(asked) == 1
    query = parse_qs(urlsplit(asked[0].path).query)
    assert query == {"service": ["registry.test"], "scope": ["repository:team/model:pull"]}
    blobs = [seen for seen in origin.seen if seen.path == BLOB]
    assert [seen.headers.get("authorization") for seen in blobs] == [None, "Bearer t1", "Bearer t1"]
    assert all(seen.headers.get("authorization") != USER for seen in blobs), "the password is the realm's"


def test_refused_token_is_asked_for_again(origin: Origin, store: Store, tmp_path: Path) -> None:
    tokens = {"t1"}
    asked = issuer(origin, ["t1", "t2"], wanted=USER)
    let_in = registry(origin, f"{origin.url}/token", tokens)
    folder = docker(
        tmp_path / "source", f"http://127.0.0.1:{origin.port}/v2/", username="robot", password="pa:ss"
    )
    manifest = blob_of(origin)
    origin.faults[BLOB] = [Fault(truncate_after=90_000)]

    def expire(seen: Seen) -> Reply | None:
        if any(other.sent for other in origin.seen):
            tokens.clear()
            tokens.add("t2")
        return let_in(seen)

    origin.services["/v2/"] = expire
    run(store, manifest, auth=Auth.OCI, source_dir=folder)
    assert len(asked) == 2


def test_registry_redirects_to_storage_without_the_token(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    issuer(origin, ["t1"], wanted=USER)
    registry(origin, f"{origin.url}/token", {"t1"})
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", username="robot", password="pa:ss")
    manifest = blob_of(origin)
    with serve_origin() as storage:
        storage.files["/bucket"] = DATA
        origin.faults[BLOB] = [Fault(redirect=f"{storage.url}/bucket?X-Signature=1")]
        run(store, manifest, auth=Auth.OCI, source_dir=folder)
        assert "authorization" not in storage.seen[0].headers


def test_challenge_of_another_origin_is_not_answered(origin: Origin, store: Store, tmp_path: Path) -> None:
    """Else whoever a registry redirects to could ask for its password."""
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", username="robot", password="pa:ss")
    manifest = blob_of(origin)
    with serve_origin() as evil:
        asked = issuer(evil, ["t1"], wanted=USER)
        registry(evil, f"{evil.url}/token", {"t1"})
        origin.faults[BLOB] = [Fault(redirect=f"{evil.url}/v2/team/model/blobs/x")]
        assert refused(store, manifest, auth=Auth.OCI, source_dir=folder).reason is Reason.ACCESS_DENIED
        assert asked == []
        assert all("authorization" not in seen.headers for seen in evil.seen)


def test_public_registry_gives_tokens_without_credentials(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    asked = issuer(origin, ["t1"], wanted="")
    registry(origin, f"{origin.url}/token", {"t1"})
    run(store, blob_of(origin), auth=Auth.OCI, source_dir=tmp_path / "none")
    assert len(asked) == 1


def test_registry_that_wants_basic_gets_it(origin: Origin, store: Store, tmp_path: Path) -> None:
    def let_in(seen: Seen) -> Reply | None:
        if seen.headers.get("authorization") == USER:
            return None
        return Reply(status=401, headers=(("WWW-Authenticate", 'Basic realm="registry"'),))

    origin.services["/v2/"] = let_in
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", username="robot", password="pa:ss")
    run(store, blob_of(origin), auth=Auth.OCI, source_dir=folder)
    assert [seen.headers.get("authorization") for seen in origin.seen] == [None, USER]


def test_identity_token_is_exchanged(origin: Origin, store: Store, tmp_path: Path) -> None:
    forms: list[dict[str, list[str]]] = []

    def exchange(seen: Seen) -> Reply:
        forms.append(parse_qs(seen.form))
        return Reply(body=b'{"access_token": "t9"}')

    origin.services["/token"] = exchange
    registry(origin, f"{origin.url}/token", {"t9"})
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", identitytoken="refresh-me")
    run(store, blob_of(origin), auth=Auth.OCI, source_dir=folder)
    assert forms[0]["grant_type"] == ["refresh_token"] and forms[0]["refresh_token"] == ["refresh-me"]


@pytest.mark.parametrize("row", [{"username": "robot", "password": "wrong"}, {}])
def test_refusal_by_the_token_service_is_final_and_names_the_cure(
    origin: Origin, store: Store, tmp_path: Path, row: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = issuer(origin, ["t1"], wanted=USER)
    registry(origin, f"{origin.url}/token", {"t1"})
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", **row)
    error = refused(store, blob_of(origin), auth=Auth.OCI, source_dir=folder)
    assert error.reason is Reason.ACCESS_DENIED and "pullSecretRef" in error.message
    assert len(asked) == 1
    assert "wrong" not in error.message + capsys.readouterr().out


def test_token_that_is_refused_at_once_ends_the_attempt(origin: Origin, store: Store, tmp_path: Path) -> None:
    asked = issuer(origin, ["useless"], wanted="")
    registry(origin, f"{origin.url}/token", set())
    error = refused(store, blob_of(origin), auth=Auth.OCI, source_dir=tmp_path / "none")
    assert error.reason is Reason.ACCESS_DENIED
    assert len(asked) == 1 and len(origin.seen) == 3


def test_busy_token_service_is_tried_again(origin: Origin, store: Store, tmp_path: Path) -> None:
    replies = [Reply(status=503), Reply(body=b'{"token": "t1"}')]
    origin.services["/token"] = lambda _seen: replies.pop(0)
    registry(origin, f"{origin.url}/token", {"t1"})
    run(store, blob_of(origin), auth=Auth.OCI, source_dir=tmp_path / "none")
    assert replies == []


def test_realm_that_redirects_does_not_get_anything_further(
    origin: Origin, store: Store, tmp_path: Path
) -> None:
    folder = docker(tmp_path / "source", f"127.0.0.1:{origin.port}", username="robot", password="pa:ss")
    with serve_origin() as evil:
        where = (("Location", f"{evil.url}/token"),)
        origin.services["/token"] = lambda _seen: Reply(status=307, headers=where)
        registry(origin, f"{origin.url}/token", {"t1"})
        assert (
            refused(store, blob_of(origin), auth=Auth.OCI, source_dir=folder).reason is Reason.ACCESS_DENIED
        )
        assert evil.seen == []


def test_https_registry_cannot_send_the_password_to_plain_http() -> None:
    from slmfetch.connect import Session
    from slmfetch.oci import Oci

    access, session = Oci(Path("/nonexistent")), Session(timeout_seconds=1.0)
    for realm in ("http://registry.test/token", "file:///token", "https://[bad/token", ""):
        with pytest.raises(FetchError) as caught:
            access.answer(
                "https://registry.test/v2/a/blobs/x", [f'Bearer realm="{realm}"'], sent="", session=session
            )
        assert caught.value.reason is Reason.ACCESS_DENIED and "only https" in caught.value.message


def test_challenges_are_read_from_one_header_or_several() -> None:
    both = parse_challenges(['Basic realm="a, b", Bearer realm="https://r/t",scope="repository:x:pull,push"'])
    assert both["basic"] == {"realm": "a, b"}
    assert both["bearer"] == {"realm": "https://r/t", "scope": "repository:x:pull,push"}
    assert parse_challenges(['basic realm="x"', "Bearer realm=https://r"])["bearer"] == {"realm": "https://r"}
    assert parse_challenges(["Negotiate", ""]) == {}


@pytest.mark.parametrize(
    ("name", "url", "found"),
    [
        ("registry.test", "https://registry.test/v2/team/model/blobs/x", True),
        ("https://registry.test/v1/", "https://registry.test/v2/team/model/blobs/x", True),
        ("registry.test", "https://registry.test:5000/v2/team/model/blobs/x", False),
        ("registry.test/team", "https://registry.test/v2/team/model/blobs/x", True),
        ("registry.test/tea", "https://registry.test/v2/team/model/blobs/x", False),
        ("https://index.docker.io/v1/", "https://registry-1.docker.io/v2/library/model/blobs/x", True),
        ("evil.registry.test", "https://registry.test/v2/team/model/blobs/x", False),
    ],
)
def test_login_is_found_by_host_and_path(name: str, url: str, found: bool) -> None:
    config = json.dumps({"auths": {name: {"username": "u", "password": "p"}}}).encode()
    assert (find_login(config, url).username == "u") is found


def test_longest_path_wins() -> None:
    rows = {"r.test": {"username": "a"}, "r.test/team": {"username": "b"}, "r.test/other": {"username": "c"}}
    url = "https://r.test/v2/team/model/blobs/x"
    assert find_login(json.dumps({"auths": rows}).encode(), url).username == "b"


@pytest.mark.parametrize("text", ["", "[]", '{"auths": 3}', '{"auths": {"r.test": {"auth": "%%"}}}'])
def test_pull_secret_that_cannot_be_read_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    session = Session(timeout_seconds=1.0)
    with pytest.raises(FetchError) as caught:
        Oci(tmp_path).answer("https://r.test/v2/a/blobs/x", ['Basic realm="x"'], sent="", session=session)
    assert caught.value.reason is Reason.ACCESS_DENIED and "pull secret" in caught.value.message


def test_file_inside_a_layer_is_fetched_by_range(origin: Origin, store: Store) -> None:
    layer = noise(5000, 51) + DATA + noise(7000, 52)
    origin.files["/v2/a/blobs/layer"] = layer
    file = ManifestFile(
        path="model.onnx", size=len(DATA), sha256=SHA, url=f"{origin.url}/v2/a/blobs/layer", offset=5000
    )
    origin.faults["/v2/a/blobs/layer"] = [Fault(truncate_after=80_000)]
    run(store, Manifest(files=(file,)))
    assert [seen.start for seen in origin.seen] == [5000, 85_000]
    assert origin.bytes_sent == len(DATA)


def test_layer_without_ranges_or_too_short_is_refused(origin: Origin, store: Store) -> None:
    url = f"{origin.url}/layer"
    origin.files["/layer"] = b"x" * 5000 + DATA[:-1]
    file = ManifestFile(path="model.onnx", size=len(DATA), sha256=SHA, url=url, offset=5000)
    error = refused(store, Manifest(files=(file,)))
    assert error.reason is Reason.INTEGRITY_MISMATCH and str(5000 + len(DATA)) in error.message
    origin.rangeless.add("/layer")
    error = refused(store, Manifest(files=(file,)))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "must support Range requests" in error.message
    assert len(origin.seen) == 2


def test_local_file_at_an_offset(store: Store, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(b"x" * 512 + DATA + b"tail")
    file = ManifestFile(
        path="model.onnx", size=len(DATA), sha256=SHA, url=f"file://{tmp_path}/layer.tar", offset=512
    )
    run(store, Manifest(files=(file,)), file_roots=(tmp_path,))
