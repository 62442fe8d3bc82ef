# SPDX-License-Identifier: Apache-2.0
"""oci sources against a registry on loopback."""

import base64
import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.adapters.sources import build_resolver, oci_source
from slmops.adapters.sources.oci_source import MAX_ROWS
from slmops.adapters.sources.registry import parse_image, read_docker_config
from slmops.api.source import Source
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason
from slmwire.registry import find_login
from tests.unit.slmfetch.origin import Fault, Origin
from tests.unit.sources.fake_registry import FakeRegistry, digest_of, serve_registry, tar_of

MODEL, TOKENIZER = b"weights" * 999, b"{}"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serve_registry() as running:
        yield running


def source_of(registry: FakeRegistry, **fields: Any) -> Source:
    body = {"image": f"{registry.name}:1.0", "plainHttp": True} | fields
    return Source.model_validate({"oci": body})


def docker_config(host: str, password: str = "pass") -> dict[str, str]:  # noqa: S107
    auth = base64.b64encode(f"edge:{password}".encode()).decode()
    return {"config.json": json.dumps({"auths": {f"https://{host}/v1/": {"auth": auth}}})}


async def failure(resolver: SourceResolver, source: Source, **secret: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await resolver.resolve(source, **secret)
    return caught.value


async def test_layers_with_titles_are_files(registry: FakeRegistry, resolver: SourceResolver) -> None:
    digest = registry.push(registry.raw("onnx/model.onnx", MODEL), registry.raw("tokenizer.json", TOKENIZER))
    resolved = await resolver.resolve(source_of(registry))
    assert resolved.reference == f"{registry.name}@{digest}"
    first, second = resolved.manifest.files
    assert (first.path, first.size, first.offset) == ("onnx/model.onnx", len(MODEL), 0)
    assert first.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert first.url == f"http://{registry.name.replace('/', '/v2/', 1)}/blobs/{digest_of(MODEL)}"
    assert second.path == "tokenizer.json"
    assert not any("/blobs/" in path for path, _ in registry.seen), "nothing of the model is read"


async def test_modelpack_raw_and_tar_layers(registry: FakeRegistry, resolver: SourceResolver) -> None:
    name = {"annotations": {"org.cncf.model.filepath": "model.bin"}}
    raw = registry.add_blob(MODEL) | {"mediaType": "application/vnd.cncf.model.weight.v1.raw"} | name
    body = tar_of({"config/tokenizer.json": TOKENIZER})
    tar = registry.add_blob(body) | {"mediaType": "application/vnd.cncf.model.weight.config.v1.tar"} | name
    registry.push(raw, tar)
    resolved = await resolver.resolve(source_of(registry))
    assert [file.path for file in resolved.manifest.files] == ["config/tokenizer.json", "model.bin"]


async def test_files_in_tar_layers_have_offsets(registry: FakeRegistry, resolver: SourceResolver) -> None:
    body = tar_of({"models/model.onnx": MODEL, "models/tokenizer.json": TOKENIZER, "etc/passwd": b"root"})
    registry.push(registry.tar(body))
    resolved = await resolver.resolve(source_of(registry, path="models"))
    assert [file.path for file in resolved.manifest.files] == ["model.onnx", "tokenizer.json"]
    for file in resolved.manifest.files:
        assert file.url.endswith(digest_of(body))
        content = body[file.offset : file.offset + file.size]
        assert hashlib.sha256(content).hexdigest() == file.sha256


async def test_later_layers_win_and_take_away(registry: FakeRegistry, resolver: SourceResolver) -> None:
    lower = tar_of({"a": b"old", "b": b"gone", "d/e": b"gone", "keep": b"k"})
    upper = tar_of({"a": b"new", ".wh.b": b"", "d/.wh..wh..opq": b"", "d/f": b"1"})
    registry.push(registry.tar(lower), registry.tar(upper))
    resolved = await resolver.resolve(source_of(registry))
    sizes = {file.path: file.sha256 for file in resolved.manifest.files}
    assert set(sizes) == {"a", "keep", "d/f"}
    assert sizes["a"] == hashlib.sha256(b"new").hexdigest()


async def test_globs_choose(registry: FakeRegistry, resolver: SourceResolver) -> None:
    registry.push(
        registry.raw("model.onnx", MODEL), registry.raw("README.md", b"#"), registry.raw(".git", b"x")
    )
    resolved = await resolver.resolve(source_of(registry, files=["*.onnx"]))
    assert [file.path for file in resolved.manifest.files] == ["model.onnx"]
    error = await failure(resolver, source_of(registry, files=["*.gguf"]))
    assert error.reason is Reason.UNFIT and "no file matches" in str(error)
    everything = await resolver.resolve(source_of(registry))
    assert len(everything.manifest.files) == 2, "hidden files are left out"


async def test_a_small_file_is_read_out_of_its_layer(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    registry.auth = "bearer"
    secret = docker_config(registry.host)
    body = tar_of({"a": MODEL, "model.sig": b"signature", "empty": b""})
    registry.push(registry.tar(body), registry.raw("b", b"raw"))
    source = source_of(registry)
    files = {f.path: f for f in (await resolver.resolve(source, secret=secret)).manifest.files}
    expected = {"model.sig": b"signature", "b": b"raw", "empty": b""}
    for path, content in expected.items():
        assert await resolver.read_file(source, files[path], secret=secret) == content
    registry.blobs[digest_of(body)] = body.replace(b"signature", b"Signature")
    with pytest.raises(SourceError, match="no longer what"):
        await resolver.read_file(source, files["model.sig"], secret=secret)
    registry.ranges = False
    with pytest.raises(SourceError, match="no parts of layers"):
        await resolver.read_file(source, files["model.sig"], secret=secret)
    with pytest.raises(SourceError, match="at most"):
        await resolver.read_file(source, replace(files["a"], size=200_000), secret=secret)
    with pytest.raises(SourceError, match="only nodes"):
        await resolver.read_file(source, replace(files["a"], url=""), secret=secret)


async def test_packed_layers_need_an_image_volume(registry: FakeRegistry, resolver: SourceResolver) -> None:
    digest = registry.push(registry.targz(tar_of({"models/model.onnx": MODEL})))
    error = await failure(resolver, source_of(registry))
    assert error.permanent and "delivery: ImageVolume" in str(error)
    source = source_of(registry, delivery="ImageVolume", path="models")
    resolved = await resolver.resolve(source)
    (file,) = resolved.manifest.files
    assert (file.path, file.size, file.url, file.offset) == ("model.onnx", len(MODEL), "", 0)
    assert file.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert resolved.reference == f"{registry.name}@{digest}"


async def test_an_image_volume_has_no_choice_of_files(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    registry.push(registry.tar(tar_of({"model.onnx": MODEL, "tokenizer.json": TOKENIZER})))
    error = await failure(resolver, source_of(registry, delivery="ImageVolume", files=["*.onnx"]))
    assert error.permanent and "ImageVolume mounts /" in str(error)


@pytest.mark.parametrize("link", ["models", "models/chat"])
async def test_a_folder_that_is_a_link_in_any_layer_is_refused(
    registry: FakeRegistry, resolver: SourceResolver, link: str
) -> None:
    # A mount would show what the link leads to, and layers may put anything there.
    info = tarfile.TarInfo(link)
    info.type, info.linkname = tarfile.SYMTYPE, "/else"
    registry.push(
        registry.tar(tar_of({}, members=(info,))),
        registry.tar(tar_of({"models/chat/model.onnx": MODEL})),
        registry.tar(tar_of({"else/model.onnx": b"other"})),
    )
    error = await failure(resolver, source_of(registry, delivery="ImageVolume", path="models/chat"))
    assert error.permanent and f"the folder {link} is a link" in str(error)


async def test_files_without_end_are_refused(registry: FakeRegistry, resolver: SourceResolver) -> None:
    half = {f"a/{index}": b"" for index in range(MAX_ROWS // 2 + 1)}
    registry.push(registry.targz(tar_of(half)), registry.targz(tar_of({f"b/{p}": b"" for p in half})))
    error = await failure(resolver, source_of(registry, delivery="ImageVolume"))
    assert error.permanent and f"more than {MAX_ROWS} files" in str(error)


async def test_a_packed_layer_that_says_it_is_not_is_refused(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    registry.push(registry.tar(gzip.compress(tar_of({"model.onnx": MODEL}))))
    error = await failure(resolver, source_of(registry))
    assert error.permanent and "says that it is not packed" in str(error)


async def test_artifacts_cannot_be_mounted(registry: FakeRegistry, resolver: SourceResolver) -> None:
    registry.push(registry.raw("model.onnx", MODEL))
    error = await failure(resolver, source_of(registry, delivery="ImageVolume"))
    assert error.permanent and "delivery: Pull" in str(error)


async def test_an_index_is_taken_by_platform(registry: FakeRegistry, resolver: SourceResolver) -> None:
    arm = registry.push(registry.raw("arm", b"1"), tag="arm")
    amd = registry.push(registry.raw("amd", b"2"), tag="amd")
    registry.push_index({"linux/arm64": arm, "linux/amd64": amd, "unknown/unknown": "sha256:" + "0" * 64})
    resolved = await resolver.resolve(source_of(registry, platform="linux/arm64"))
    assert [file.path for file in resolved.manifest.files] == ["arm"]
    assert resolved.reference.endswith(arm)
    error = await failure(resolver, source_of(registry))
    assert "linux/amd64, linux/arm64" in str(error) and "platform" in str(error)
    registry.push_index({"linux/amd64": amd})
    assert (await resolver.resolve(source_of(registry))).reference.endswith(amd)


async def test_a_digest_pins(registry: FakeRegistry, resolver: SourceResolver) -> None:
    digest = registry.push(registry.raw("a", b"1"))
    registry.push(registry.raw("a", b"2"))
    pinned = source_of(registry, image=f"{registry.name}:1.0@{digest}")
    assert (await resolver.resolve(pinned)).reference == f"{registry.name}@{digest}"
    kind, body = registry.manifests[digest]
    registry.manifests[digest] = (kind, body + b" ")
    error = await failure(resolver, pinned)
    assert error.reason is Reason.INTEGRITY_MISMATCH


async def test_a_layer_that_is_not_its_digest_is_refused(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    body = tar_of({"a": MODEL})
    registry.push(registry.tar(body))
    for altered in (body[:-1] + b"x", body[:-512], body + b"x"):
        registry.blobs[digest_of(body)] = altered
        error = await failure(resolver, source_of(registry))
        assert error.reason is Reason.INTEGRITY_MISMATCH, altered[-1:]


async def test_links_are_refused_with_the_cure(registry: FakeRegistry, resolver: SourceResolver) -> None:
    link = tarfile.TarInfo("model.onnx")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    registry.push(registry.tar(tar_of({"ok": b"1"}, members=(link,))))
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.UNFIT and error.permanent and "model.onnx is a link" in str(error)
    assert (await resolver.resolve(source_of(registry, files=["ok"]))).manifest.files


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a//b"])
async def test_titles_that_lead_out_are_refused(
    registry: FakeRegistry, resolver: SourceResolver, path: str
) -> None:
    registry.push(registry.raw(path, b"1"))
    error = await failure(resolver, source_of(registry, files=["*"]))
    assert error.reason is Reason.UNFIT and error.permanent


@pytest.mark.parametrize(
    "layer",
    [
        {"digest": "sha256:zz", "size": 1},
        {"digest": "sha512:" + "0" * 128, "size": 1},
        {"digest": "sha256:" + "0" * 64, "size": -1},
        {"digest": "sha256:" + "0" * 64, "size": 1 << 60},
        {"digest": "sha256:" + "0" * 64, "size": "1"},
        {"digest": "sha256:" + "0" * 64, "size": 1, "annotations": []},
        "layer",
    ],
)
async def test_odd_manifests_are_refused(
    registry: FakeRegistry, resolver: SourceResolver, layer: Any
) -> None:
    registry.push(layer)
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.UNFIT and error.permanent


@pytest.mark.parametrize("auth", ["bearer", "basic"])
async def test_private_registry(registry: FakeRegistry, resolver: SourceResolver, auth: str) -> None:
    registry.auth = auth
    registry.push(registry.tar(tar_of({"a": b"1"})))
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.ACCESS_DENIED and "pullSecretRef" in str(error)
    error = await failure(
        resolver, source_of(registry), secret=docker_config(registry.host, password="wrong")
    )
    assert error.reason is Reason.ACCESS_DENIED and "check the Secret" in str(error)
    assert "wrong" not in str(error)
    resolved = await resolver.resolve(source_of(registry), secret=docker_config(registry.host))
    assert resolved.manifest.files


async def test_anybody_gets_a_token_of_a_public_registry(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    registry.auth, registry.public = "bearer", True
    registry.push(registry.raw("a", b"1"))
    assert (await resolver.resolve(source_of(registry))).manifest.files
    other = docker_config("other.example.com")
    assert (await resolver.resolve(source_of(registry), secret=other)).manifest.files
    assert not any(header.startswith("Basic") for _, header in registry.seen)


async def test_a_token_that_is_refused_is_had_again(registry: FakeRegistry, resolver: SourceResolver) -> None:
    registry.auth = "bearer"
    registry.push(registry.tar(tar_of({"a": b"1"})), registry.tar(tar_of({"b": b"1"})))

    class Forgetful(set[str]):
        def __contains__(self, token: object) -> bool:
            known = super().__contains__(token)
            self.discard(str(token))  # each token is good once
            return known

    registry.tokens = Forgetful()
    resolved = await resolver.resolve(source_of(registry), secret=docker_config(registry.host))
    assert len(resolved.manifest.files) == 2


async def test_credentials_do_not_follow_to_object_storage(
    registry: FakeRegistry, resolver: SourceResolver, origin: Origin
) -> None:
    registry.auth, registry.cdn = "bearer", origin.url
    body = tar_of({"a": b"1"})
    registry.push(registry.tar(body))
    origin.files[f"/{digest_of(body)}"] = body
    resolved = await resolver.resolve(source_of(registry), secret=docker_config(registry.host))
    assert resolved.manifest.files[0].url.endswith(digest_of(body)) and registry.host in (
        resolved.manifest.files[0].url
    )
    assert origin.seen and all("authorization" not in seen.headers for seen in origin.seen)


async def test_object_storage_cannot_ask_for_the_registrys_login(
    registry: FakeRegistry, resolver: SourceResolver, origin: Origin
) -> None:
    registry.auth, registry.cdn = "bearer", origin.url
    body = tar_of({"a": b"1"})
    registry.push(registry.tar(body))
    challenge = ("WWW-Authenticate", f'Bearer realm="{origin.url}/token",service="reg"')
    origin.faults[f"/{digest_of(body)}"] = [Fault(status=401, headers=(challenge,)) for _ in range(3)]
    error = await failure(resolver, source_of(registry), secret=docker_config(registry.host))
    assert error.reason is Reason.ACCESS_DENIED
    assert [seen.path.partition("?")[0] for seen in origin.seen] == [f"/{digest_of(body)}"]
    assert all("authorization" not in seen.headers for seen in origin.seen)


async def test_metadata_services_are_no_realm_no_registry_and_no_storage(
    registry: FakeRegistry, resolver: SourceResolver
) -> None:
    registry.auth, registry.realm = "bearer", "http://169.254.169.254/token"
    registry.push(registry.tar(tar_of({"a": b"1"})))
    error = await failure(resolver, source_of(registry))
    assert error.permanent and "169.254.169.254" in str(error)
    registry.auth, registry.cdn = "", "http://169.254.169.254"
    assert "169.254.169.254" in str(await failure(resolver, source_of(registry)))
    error = await failure(resolver, source_of(registry, image="169.254.169.254/models/chat:1.0"))
    assert error.reason is Reason.ACCESS_DENIED and error.permanent
    error = await failure(build_resolver(), source_of(registry))
    assert error.permanent and "loopback" in str(error)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "http://[::1/token", ""])
async def test_a_realm_that_is_no_url_is_refused(
    registry: FakeRegistry, resolver: SourceResolver, realm: str
) -> None:
    registry.auth, registry.realm = "bearer", realm or " "
    registry.push(registry.raw("a", b"1"))
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.ACCESS_DENIED and "not https" in str(error)


async def test_a_tag_that_does_not_exist(registry: FakeRegistry, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "404" in str(error) and "pullSecretRef" in str(error)


def test_image_names() -> None:
    name = parse_image("Registry.example.com:5000/a/b:1.2@sha256:" + "0" * 64)
    assert (name.registry, name.repository, name.tag) == ("registry.example.com:5000", "a/b", "1.2")
    assert name.reference == "sha256:" + "0" * 64
    assert parse_image("docker.io/library/x").reference == "latest"


def test_docker_configurations() -> None:
    image, elsewhere = parse_image("r.example/team/model"), parse_image("s.example/team/model")
    config = docker_config("r.example")["config.json"]
    assert read_docker_config(config, image) == ("edge", "pass")
    assert read_docker_config(config, elsewhere) is None
    plain = json.dumps({"auths": {"r.example": {"username": "u", "password": "p:q"}}})
    assert read_docker_config(plain, image) == ("u", "p:q")
    hub = json.dumps({"auths": {"https://index.docker.io/v1/": {"username": "u", "password": "p"}}})
    assert read_docker_config(hub, parse_image("docker.io/library/x")) == ("u", "p")
    for text in ("", "[]", "{}", '{"auths": 1}', '{"auths": {"r.example": {"auth": "!"}}}'):
        with pytest.raises(SourceError, match="docker-registry"):
            read_docker_config(text, image)
    with pytest.raises(SourceError, match="identity tokens"):
        read_docker_config('{"auths": {"r.example": {"identitytoken": "x"}}}', image)


def test_operator_and_nodes_take_the_same_login_of_several_for_one_registry() -> None:
    rows = {f"r.example/{team}": {"username": team, "password": "p"} for team in ("other", "team", "team/x")}
    config = json.dumps({"auths": rows})
    assert read_docker_config(config, parse_image("r.example/team/model")) == ("team", "p")
    assert find_login(config, "https://r.example/v2/team/model/blobs/sha256:0").username == "team"
    assert read_docker_config(config, parse_image("r.example/nobody/model")) is None


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join),
    st.sets(st.sampled_from(["/", "a", "b/", "a/b", "a/b/", "b/a/a", "a/a/", "ab", "c"]), max_size=4),
)
def test_what_a_layer_takes_away_is_what_lies_there_or_below(path: str, removed: set[str]) -> None:
    below = any(path.startswith(entry if entry.endswith("/") else f"{entry}/") for entry in removed)
    assert oci_source._is_removed(path, removed) is ("/" in removed or path in removed or below)


async def test_countless_files_that_match_are_refused(
    registry: FakeRegistry, resolver: SourceResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_source, "MAX_ROWS", 3)
    registry.push(registry.tar(tar_of({"a": b"", "b": b""})), registry.tar(tar_of({"c": b"", "d": b""})))
    error = await failure(resolver, source_of(registry))
    assert error.reason is Reason.UNFIT and "more than 3 files" in str(error)
