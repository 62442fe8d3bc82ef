# SPDX-License-Identifier: Apache-2.0
"""Files without a source: from the node's own store, or from another node of the site, or not at all."""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmfetch.agent_http import Reply, Request, Server
from slmfetch.bundle import import_bundle
from slmfetch.config import Owner
from slmfetch.download import Downloader
from slmfetch.errors import FetchError, IntegrityError
from slmfetch.fetch import Outcome, fetch
from slmfetch.keep import keep
from slmfetch.partial import open_partial
from slmfetch.peers import rank
from slmfetch.progress import Reporter, Tally
from slmfetch.store import Store, scan
from slmwire.distribution import Distribution
from slmwire.manifest import STORE_URL, Manifest, ManifestFile
from slmwire.reasons import Reason
from tests.unit.slmfetch.agents import RunningAgent, serve_agent
from tests.unit.slmfetch.kit import OWNER, assert_consistent, job_of, noise, settings_of, tree_content
from tests.unit.slmfetch.origin import Origin

MODEL = noise(60_000, 31)
ADAPTER = noise(400_000, 32)
SHA = hashlib.sha256(ADAPTER).hexdigest()
FOUND = {"model.onnx": MODEL, "adapters/local.onnx_adapter": ADAPTER}


def manifest_at(origin: Origin, *, url: str = STORE_URL, offset: int = 0) -> Manifest:
    origin.files["/m/model.onnx"] = MODEL
    model = ManifestFile(
        path="model.onnx",
        size=len(MODEL),
        sha256=hashlib.sha256(MODEL).hexdigest(),
        url=f"{origin.url}/m/model.onnx",
    )
    adapter = ManifestFile(
        path="adapters/local.onnx_adapter", size=len(ADAPTER), sha256=SHA, url=url, offset=offset
    )
    return Manifest(files=(adapter, model))


@dataclass(slots=True, kw_only=True)
class Site:
    """The node `n1`, and what its neighbours answer."""

    store: Store
    manifest: Manifest
    folder: Path
    port: int

    def tell(self, *names: str, peer_port: int | None = None) -> None:
        """Neighbours `nK` at 127.0.4.K."""
        nodes = {name: f"127.0.4.{name.removeprefix('n')}" for name in ("n1", *names)}
        told = Distribution(peer_port=self.port if peer_port is None else peer_port, sites={"s": nodes})
        (self.folder / "distribution.json").write_text(told.to_json())

    def fetch(self, **changes: object) -> Outcome:
        told = self.folder / "distribution.json"
        configured = settings_of(self.store, distribution_file=told, node="n1", **changes)
        return fetch(self.store, job_of(self.manifest), configured)

    def fails(self, **changes: object) -> FetchError:
        with pytest.raises(FetchError) as caught:
            self.fetch(**changes)
        assert_consistent(self.store)
        assert not [entry for entry in scan(self.store.partial) if entry.name.endswith(".peers")]
        return caught.value

    @contextlib.contextmanager
    def holder(self, name: str, data: bytes | None = ADAPTER) -> Iterator[RunningAgent]:
        """A neighbour whose agent gives `data` for the adapter, None for nothing of it."""
        store = Store(self.folder / f"store-{name}")
        store.prepare()
        if data is not None:
            store.blob(SHA).write_bytes(data)
            store.blob(SHA).chmod(0o444)
        address = f"127.0.4.{name.removeprefix('n')}"
        with serve_agent(store, address=address, port=self.port) as running:
            yield running


@pytest.fixture
def site(store: Store, origin: Origin, tmp_path: Path) -> Site:
    with socket.create_server(("127.0.4.1", 0)) as free:
        port = free.getsockname()[1]
    return Site(store=store, manifest=manifest_at(origin), folder=tmp_path, port=port)


def keep_here(site: Site, data: bytes = ADAPTER) -> None:
    path = site.folder / "adapter.onnx_adapter"
    path.write_bytes(data)
    keep(site.store, OWNER, path, settings_of(site.store))


def test_a_file_trained_here_is_taken_from_the_own_store(site: Site, origin: Origin) -> None:
    keep_here(site)
    outcome = site.fetch()
    assert (outcome.bytes_downloaded, outcome.bytes_reused) == (len(MODEL), len(ADAPTER))
    assert tree_content(site.store, site.manifest) == FOUND
    assert [seen.path for seen in origin.seen] == ["/m/model.onnx"]


def test_a_node_without_a_network_gets_it_as_a_bundle(site: Site, origin: Origin, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for path, data in FOUND.items():
        (bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle / path).write_bytes(data)
    (bundle / "manifest.json").write_text(site.manifest.to_json())
    import_bundle(site.store, bundle)
    assert site.fetch().bytes_downloaded == 0
    assert tree_content(site.store, site.manifest) == FOUND
    assert origin.seen == []


def test_another_node_gets_it_from_the_agent_of_the_one_that_trained_it(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "adapter.onnx_adapter"
    path.write_bytes(ADAPTER)
    trained = Store(tmp_path / "store-n2")
    keep(trained, OWNER, path, settings_of(trained))
    site.tell("n2", "n3")
    with serve_agent(trained, address="127.0.4.2", port=site.port), site.holder("n3", None):
        outcome = site.fetch()
    assert outcome.bytes_from_peers == len(ADAPTER)
    assert tree_content(site.store, site.manifest) == FOUND
    assert scan(site.store.partial) == []


def test_the_one_node_of_a_large_site_that_has_it_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmfetch.peers.MAX_ASKED", 2)
    last = rank(SHA, [f"n{number}" for number in range(2, 10)])[-1]
    site.tell(*(f"n{number}" for number in range(2, 10)))
    with site.holder(last):
        assert site.fetch().bytes_from_peers == len(ADAPTER)


def test_a_download_goes_on_where_an_earlier_run_stood(site: Site) -> None:
    begun = open_partial(site.store, site.manifest.files[0])
    assert begun is not None
    begun.restore()
    begun.describe(etag="", origin="")
    begun.write(memoryview(ADAPTER)[:100_000])
    begun.close()
    site.tell("n2")
    with site.holder("n2"):
        assert site.fetch().bytes_from_peers == len(ADAPTER) - 100_000
    assert tree_content(site.store, site.manifest) == FOUND


def test_wrong_bytes_of_an_earlier_run_are_not_held_against_who_gives_the_rest(site: Site) -> None:
    begun = open_partial(site.store, site.manifest.files[0])
    assert begun is not None
    begun.restore()
    begun.describe(etag="", origin="")
    begun.write(memoryview(bytes(100_000)))
    begun.close()
    site.tell("n2")
    with site.holder("n2"):
        site.fetch()
    assert tree_content(site.store, site.manifest) == FOUND


@pytest.mark.parametrize("liars", [["n2"], ["n2", "n3", "n4"]])
def test_a_liar_is_refused_by_hash_and_an_honest_node_asked(site: Site, liars: list[str]) -> None:
    site.tell(*liars, "n5")
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(liars):
            stack.enter_context(site.holder(name, bytes([number]) * len(ADAPTER)))
        stack.enter_context(site.holder("n5"))
        site.fetch()
    assert tree_content(site.store, site.manifest) == FOUND
    assert scan(site.store.quarantine) == []


def test_liars_alone_give_nothing(site: Site, origin: Origin) -> None:
    site.tell("n2", "n3")
    with site.holder("n2", bytes(len(ADAPTER))), site.holder("n3", ADAPTER[:-1] + b"x"):
        error = site.fails()
    assert error.reason == Reason.ADAPTER_LOST
    assert not site.store.blob(SHA).exists()
    assert not site.store.tree(site.manifest.digest).exists()
    assert [seen.path for seen in origin.seen] == ["/m/model.onnx"]


@pytest.mark.parametrize(
    ("names", "peer_port", "held", "why"),
    [
        ((), None, ADAPTER, "its site has no other"),
        (("n2", "n3"), 0, ADAPTER, "spec.distribution.peers is None"),
        (("n2", "n3"), None, None, "any of the 2 others of its site"),
    ],
)
def test_who_has_nobody_to_ask_says_so_and_how_to_mend_it(
    site: Site, origin: Origin, names: tuple[str, ...], peer_port: int | None, held: bytes | None, why: str
) -> None:
    site.tell(*names, peer_port=peer_port)
    with site.holder("n2", held):
        error = site.fails()
    assert error.reason == Reason.ADAPTER_LOST
    for text in ("trained at the site", why, "spec.adaptation.sites", "goes on without it"):
        assert text in error.message
    assert [seen.path for seen in origin.seen] == ["/m/model.onnx"], (
        "the rest is here by now, and nobody else"
    )
    assert site.store.check_blob(site.manifest.files[1])


def test_what_is_kept_while_a_fetch_looks_for_it_is_taken(site: Site) -> None:
    rounds: list[float] = []

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 2:
            keep_here(site)

    tally = Tally()
    downloader = Downloader(
        store=site.store,
        settings=settings_of(site.store, attempts=5),
        deadline=time.monotonic() + 20,
        tally=tally,
        reporter=Reporter(path=None, total_bytes=len(ADAPTER), tally=tally),
        sleep=sleep,
    )
    downloader.obtain(site.manifest.files[0])
    assert (len(rounds), tally.downloaded) == (2, 0)
    assert site.store.blob(SHA).read_bytes() == ADAPTER
    assert scan(site.store.partial) == []


def test_nodes_that_look_for_it_do_not_wait_for_each_other(site: Site) -> None:
    other = Store(site.folder / "store-n2")
    other.prepare()
    waiting = open_partial(other, site.manifest.files[0])
    assert waiting is not None
    site.tell("n2")
    with serve_agent(other, address="127.0.4.2", port=site.port):
        error = site.fails(timeout_seconds=600.0)
    waiting.close()
    assert "gave up after 3 attempts" in error.message


def test_a_slow_node_is_asked_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmfetch.peer_link.MEASURE_SECONDS", 0.0)
    monkeypatch.setattr("slmfetch.peer_link.LOWEST_BYTES_PER_SECOND", 1 << 50)
    monkeypatch.setattr("slmfetch.peer_link.CHUNK_BYTES", 100_000)
    monkeypatch.setattr("slmfetch.peers.REFUSED_SECONDS", 0.0)
    site.tell("n2")
    with site.holder("n2"):
        assert site.fetch().bytes_from_peers == len(ADAPTER)


def test_a_size_that_no_bytes_can_have_is_the_manifest_s_fault(site: Site) -> None:
    adapter = replace(site.manifest.files[0], size=0)
    site.manifest = Manifest(files=(adapter, *site.manifest.files[1:]))
    with pytest.raises(IntegrityError, match="correct the manifest"):
        site.fetch()


@pytest.mark.parametrize(
    ("url", "offset"),
    [("store:x", 0), ("store://h/x", 0), ("STORE:", 0), ("store:", 5), (" store:", 0), ("store:/m", 0)],
)
def test_what_only_looks_like_it_is_refused_before_anything_is_fetched(
    site: Site, origin: Origin, url: str, offset: int
) -> None:
    site.manifest = manifest_at(origin, url=url, offset=offset)
    error = site.fails()
    assert error.reason == Reason.UNFIT
    assert origin.seen == []


def test_of_two_entries_with_the_same_bytes_the_one_with_a_source_is_fetched(
    site: Site, origin: Origin
) -> None:
    first, *rest = site.manifest.files
    origin.files["/m/a"] = ADAPTER
    for order in (["a", "z"], ["z", "a"]):
        twins = {order[0]: STORE_URL, order[1]: f"{origin.url}/m/a"}
        files = [replace(first, path=path, url=url) for path, url in sorted(twins.items())]
        site.manifest = Manifest(files=(*files, *rest))
        other = Owner(namespace="x", deployment=order[0])
        store = Store(site.folder / f"other-{order[0]}")
        fetch(store, job_of(site.manifest, owner=other), settings_of(store))
        assert set(tree_content(store, site.manifest)) == {"a", "z", "model.onnx"}


@contextlib.contextmanager
def answering(site: Site, reply: Reply, head: Reply) -> Iterator[None]:
    def answer(request: Request) -> Reply:
        return head if request.method == "HEAD" else reply

    server = Server(address="127.0.4.2", port=site.port, answer=answer)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.close()
        thread.join(5)


HEADS = st.builds(
    lambda state, have: {"X-Slm-State": state, "X-Slm-Have": have},
    st.sampled_from(["whole", "source", "peers", "idle", "", "x"]),
    st.sampled_from(["400000", "0", "399999", "1", "-1", "9" * 40, "x"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=HEADS,
    body=HEADS,
    status=st.sampled_from([200, 204, 206, 302, 404, 416, 503]),
    span=st.sampled_from(["bytes 0-399999/400000", "bytes 0-9/*", "bytes 5-9/400000", ""]),
    data=st.sampled_from([b"", bytes(10), bytes(400_000), bytes(400_001), ADAPTER]),
)
def test_whatever_a_neighbour_answers_only_verified_bytes_are_stored(
    site: Site, head: dict[str, str], body: dict[str, str], status: int, span: str, data: bytes
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmfetch.peer_link.PAUSE_SECONDS", 0.01)
        patch.setattr("slmfetch.peers.POLL_SECONDS", 0.01)
        patch.setattr("slmfetch.peers.TRIAL_SECONDS", 0.2)
        site.store = Store(site.folder / "fuzzed")
        site.tell("n2")
        reply = Reply(status=status, headers=body | {"Content-Range": span}, body=data)
        with answering(site, reply, Reply(status=200, headers=head)):
            try:
                site.fetch(attempts=1)
            except FetchError as error:
                assert error.reason in (Reason.ADAPTER_LOST, Reason.INTEGRITY_MISMATCH)
            else:
                assert tree_content(site.store, site.manifest) == FOUND
                site.store.blob(SHA).unlink()
        for path in site.store.partial.iterdir():
            path.unlink()
        assert_consistent(site.store)
