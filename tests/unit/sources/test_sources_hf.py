# SPDX-License-Identifier: Apache-2.0
"""hf sources through the real huggingface_hub client against an endpoint of our own."""

import gzip
import hashlib
import resource
from pathlib import Path
from typing import Any

import pytest

from slmfetch.fetch import fetch
from slmfetch.store import Store
from slmops.adapters.sources import build_resolver
from slmops.api.source import Source
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason
from tests.unit.slmfetch.kit import job_of, noise, settings_of, tree_content
from tests.unit.sources.hub import Hub, Repo

WEIGHTS = noise(300_000, 50)
FILES = {
    ".gitattributes": b"*.onnx filter=lfs",
    "README.md": b"# model",
    "onnx/model.onnx": WEIGHTS,
    "onnx/genai_config.json": b"{}",
    "pytorch_model.bin": b"not wanted",
}


def source_of(hub: Hub, **fields: Any) -> Source:
    return Source.model_validate({"hf": {"repo": "acme/orders", "endpoint": hub.url} | fields})


@pytest.fixture
def repo(hub: Hub) -> Repo:
    hub.repos["acme/orders"] = Repo(files=dict(FILES), lfs={"onnx/model.onnx", "pytorch_model.bin"})
    return hub.repos["acme/orders"]


async def failure(resolver: SourceResolver, source: Source, token: str | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await resolver.resolve(source, secret={"token": token} if token else {})
    return caught.value


async def test_branch_is_resolved_to_a_commit(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    resolved = await resolver.resolve(source_of(hub, files=["onnx/*", "README.md"]))
    assert resolved.reference == "a" * 40
    files = {f.path: f for f in resolved.manifest.files}
    assert files.keys() == {"README.md", "onnx/model.onnx", "onnx/genai_config.json"}
    assert files["onnx/model.onnx"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["README.md"].sha256 == hashlib.sha256(b"# model").hexdigest()
    assert files["onnx/model.onnx"].url == f"{hub.url}/acme/orders/resolve/{'a' * 40}/onnx/model.onnx"
    assert not any(path.startswith("/cdn") for path, _ in hub.seen), "weights are not read here"


async def test_what_is_resolved_can_be_fetched(
    hub: Hub, repo: Repo, resolver: SourceResolver, tmp_path: Path
) -> None:
    repo.token = "hf_secret"
    resolved = await resolver.resolve(source_of(hub, files=["onnx/"]), secret={"token": "hf_secret"})
    token = tmp_path / "token"
    token.write_text("hf_secret")
    store = Store(tmp_path / "store")
    fetch(store, job_of(resolved.manifest), settings_of(store, token_file=token))
    assert tree_content(store, resolved.manifest) == {
        "onnx/model.onnx": WEIGHTS,
        "onnx/genai_config.json": b"{}",
    }


async def test_moved_branch_gives_another_manifest_pinned_commit_does_not(
    hub: Hub, repo: Repo, resolver: SourceResolver
) -> None:
    repo.revisions |= {"main": "b" * 40, "v1": "a" * 40}
    assert (await resolver.resolve(source_of(hub))).reference == "b" * 40
    assert (await resolver.resolve(source_of(hub, revision="v1"))).reference == "a" * 40
    assert (await resolver.resolve(source_of(hub, revision="a" * 40))).reference == "a" * 40


async def test_all_files_leave_out_hidden_ones(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    resolved = await resolver.resolve(source_of(hub))
    assert {f.path for f in resolved.manifest.files} == FILES.keys() - {".gitattributes"}


async def test_hidden_file_asked_for_is_unfit(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(hub, files=[".gitattributes"]))
    assert error.reason is Reason.UNFIT and ".gitattributes" in str(error)


async def test_traversal_in_a_repository_is_refused(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    repo.files["onnx/../../../etc/cron.d/x"] = b"x"
    repo.files["/abs"] = b"x"
    for pattern in ("onnx/*", "/abs"):
        error = await failure(resolver, source_of(hub, files=[pattern]))
        assert error.reason is Reason.UNFIT and error.permanent


async def test_patterns_that_match_nothing(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(hub, files=["int4/*"]))
    assert error.reason is Reason.UNFIT
    assert "int4/*" in str(error) and "onnx/model.onnx" in str(error)


async def test_private_repository_needs_the_token(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    repo.token = "hf_secret"
    for token in (None, "hf_wrong"):
        error = await failure(resolver, source_of(hub), token=token)
        assert error.reason is Reason.ACCESS_DENIED
        assert "hf_" not in str(error)
    assert (await resolver.resolve(source_of(hub), secret={"token": "hf_secret"})).reference == "a" * 40
    assert {auth for _, auth in hub.seen} == {"", "Bearer hf_wrong", "Bearer hf_secret"}


async def test_no_token_of_this_machine_is_sent(
    hub: Hub, repo: Repo, resolver: SourceResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stray")
    await resolver.resolve(source_of(hub))
    assert {auth for _, auth in hub.seen} == {""}


async def test_gated_repository(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    repo.gated, repo.token = True, "hf_ok"
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.ACCESS_DENIED and "gated" in str(error)


async def test_unknown_revision_and_repository(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    error = await failure(resolver, source_of(hub, revision="v9"))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and error.permanent and "v9" in str(error)
    error = await failure(resolver, source_of(hub, repo="acme/none"))
    assert error.reason is Reason.ACCESS_DENIED and "acme/none" in str(error)


@pytest.mark.parametrize(("status", "reason"), [(429, Reason.RATE_LIMITED), (500, Reason.SOURCE_UNAVAILABLE)])
async def test_busy_endpoint(
    hub: Hub, repo: Repo, resolver: SourceResolver, status: int, reason: Reason
) -> None:
    hub.answers.append((status, {"Retry-After": "9"}, b""))
    error = await failure(resolver, source_of(hub))
    assert (error.reason, error.retry_after_seconds, error.permanent) == (reason, 9.0, False)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1}', b'{"id": "a/b", "siblings": [{}]}'])
async def test_endpoint_that_is_none(hub: Hub, repo: Repo, resolver: SourceResolver, body: bytes) -> None:
    hub.answers.append((200, {}, body))
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.SOURCE_UNAVAILABLE


async def test_endless_answer_is_cut_off(
    hub: Hub, repo: Repo, resolver: SourceResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmops.adapters.sources.hf_client.MAX_ANSWER_BYTES", 100_000)
    hub.answers.append((200, {}, b" " * 300_000))
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.UNFIT and "100000" in str(error)


async def test_small_file_that_is_altered_on_the_way(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    hub.altered["README.md"] = b"# evil!"
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.INTEGRITY_MISMATCH and "README.md" in str(error)


async def test_big_file_outside_lfs_is_refused(hub: Hub, repo: Repo, resolver: SourceResolver) -> None:
    repo.files["big.json"] = bytes(17 << 20)
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.UNFIT and "big.json" in str(error)
    assert not any("/resolve/" in path for path, _ in hub.seen)


async def test_loopback_and_redirects_to_metadata_are_refused(
    hub: Hub, repo: Repo, resolver: SourceResolver
) -> None:
    error = await failure(build_resolver(), source_of(hub))
    assert error.reason is Reason.ACCESS_DENIED and hub.seen == []
    hub.answers.append((302, {"Location": "http://169.254.169.254/latest"}, b""))
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.ACCESS_DENIED and "169.254.169.254" in str(error)


async def test_unreachable_endpoint(resolver: SourceResolver) -> None:
    source = Source.model_validate({"hf": {"repo": "a/b", "endpoint": "http://127.0.0.1:1"}})
    error = await failure(resolver, source)
    assert error.reason is Reason.SOURCE_UNAVAILABLE and not error.permanent
    assert "a/b@main" in str(error)


async def test_a_name_that_leads_elsewhere_the_second_time_gains_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered there is not even told apart by status."""
    monkeypatch.setattr("slmops.adapters.sources.addresses._lookup", lambda host: ["93.184.216.34"])
    endpoint = hub.url.replace("127.0.0.1", "localhost")
    error = await failure(build_resolver(), source_of(hub, endpoint=endpoint))
    assert error.reason is Reason.ACCESS_DENIED and "localhost leads to 127.0.0.1" in str(error)


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_that_would_unfold_is_refused_before_it_is_read(
    hub: Hub, resolver: SourceResolver, status: int
) -> None:
    bomb = gzip.compress(b" " * (300 << 20), compresslevel=1)
    hub.answers.append((status, {"Content-Encoding": "gzip"}, bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = await failure(resolver, source_of(hub))
    assert error.reason is Reason.SOURCE_UNAVAILABLE and "compressed" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
