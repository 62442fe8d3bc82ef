# SPDX-License-Identifier: Apache-2.0
"""Properties of pinning and collection."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slmfetch.collect import collect
from slmfetch.config import Owner
from slmfetch.fetch import Purpose, fetch, release
from slmfetch.keep import keep
from slmfetch.refs import Ref, adapters_of, read_all_refs, read_refs, select_kept
from slmfetch.store import Store, scan
from tests.unit.slmfetch.kit import job_of, manifest_of, settings_of

REVISIONS = st.sampled_from([f"r{n}" for n in range(6)])
OWNERS = st.sampled_from([Owner(namespace="a", deployment="x"), Owner(namespace="b", deployment="y")])
_TIME = st.integers(min_value=0, max_value=6).map(float)


@st.composite
def _refs(draw: st.DrawFn) -> dict[str, Ref]:
    names = draw(st.sets(REVISIONS, min_size=1))
    return {
        name: Ref(revision=name, files=(), fetched_at=draw(_TIME), served_at=draw(_TIME), used_at=draw(_TIME))
        for name in names
    }


@given(refs=_refs(), keep=st.integers(0, 3), data=st.data())
def test_what_may_serve_is_kept_and_the_rest_is_bounded(
    refs: dict[str, Ref], keep: int, data: st.DataObject
) -> None:
    fetching = data.draw(st.sampled_from(sorted(refs)))
    in_use = data.draw(st.sets(st.sampled_from(sorted(refs)), max_size=2))
    kept = select_kept(refs, fetching=fetching, in_use=in_use, keep_previous=keep)
    assert fetching in kept
    assert in_use <= kept
    served = sorted((r.last_used for r in refs.values() if r.last_used), reverse=True)
    for name, ref in refs.items():
        if ref.last_used and sum(other > ref.last_used for other in served) <= keep:
            assert name in kept, "fewer than keep_previous + 1 served later"
    ahead = [r for r in refs.values() if r.fetched_at > r.last_used]
    if ahead:
        newest = max(r.fetched_at for r in ahead)
        assert any(r.revision in kept for r in ahead if r.fetched_at == newest)
    distinct = len(set(served)) == len(served)
    if distinct:
        assert len(kept) <= 1 + len(in_use) + 1 + keep + 1


class StoreLife(RuleBasedStateMachine):
    """Fetches, kept files and releases of two deployments that share files, in any order."""

    def __init__(self) -> None:
        super().__init__()
        shm = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        self.source = self.folder / "src"
        self.source.mkdir()
        self.contents = {f"c{n}": f"content {n}".encode() * 10 for n in range(5)}
        for name, data in self.contents.items():
            (self.source / name).write_bytes(data)
        self.store = Store(self.folder / "store")
        self.store.prepare()
        self.current: dict[str, str] = {}
        self.kept: dict[str, list[str]] = {}
        """Hashes, the latest first."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(
        owner=OWNERS,
        revision=st.integers(0, 5),
        serve=st.booleans(),
        keep=st.integers(0, 2),
    )
    def fetch(self, owner: Owner, revision: int, serve: bool, keep: int) -> None:
        names = [f"c{revision % 5}", f"c{(revision * 2 + 1) % 5}"]
        files = {name: self.contents[name] for name in names}
        manifest = manifest_of(files, f"file://{self.source}")
        job = job_of(manifest, f"r{revision}", owner=owner, purpose=Purpose.SERVE if serve else Purpose.AHEAD)
        fetch(self.store, job, settings_of(self.store, keep_previous=keep, file_roots=(self.source,)))
        if serve:
            self.current[owner.key] = f"r{revision}"
        assert f"r{revision}" in read_refs(self.store, owner.key)

    @rule(owner=OWNERS)
    def release(self, owner: Owner) -> None:
        release(self.store, owner, wait_seconds=0.0)
        self.current.pop(owner.key, None)
        self.kept.pop(owner.key, None)
        assert read_refs(self.store, owner.key) == read_refs(self.store, adapters_of(owner).key) == {}

    @rule(owner=OWNERS, content=st.integers(0, 4))
    def keep(self, owner: Owner, content: int) -> None:
        kept = keep(self.store, owner, self.source / f"c{content}", settings_of(self.store))
        before = [sha256 for sha256 in self.kept.get(owner.key, []) if sha256 != kept.sha256]
        self.kept[owner.key] = [kept.sha256, *before][:2]
        collect(self.store)

    @rule(seed=st.integers(0, 9))
    def litter(self, seed: int) -> None:
        (self.store.partial / f"{seed:064x}.part").write_bytes(b"x")
        (self.store.trees / f".tmp-{seed:064x}").mkdir(exist_ok=True)
        release(self.store, Owner(namespace="c", deployment="z"), wait_seconds=0.0)

    @invariant()
    def holds_exactly_what_is_pinned(self) -> None:
        refs = read_all_refs(self.store)
        assert {e.name for e in scan(self.store.blobs)} == {f.sha256 for r in refs for f in r.files}
        of_revisions = [r for r in refs if not r.revision.startswith("adapter-")]
        assert {e.name for e in scan(self.store.trees)} == {
            r.digest.removeprefix("sha256:") for r in of_revisions
        }
        assert scan(self.store.partial) == []

    @invariant()
    def current_is_pinned(self) -> None:
        for key, revision in self.current.items():
            assert revision in read_refs(self.store, key)

    @invariant()
    def the_latest_adapters_are_pinned(self) -> None:
        for owner in (Owner(namespace="a", deployment="x"), Owner(namespace="b", deployment="y")):
            refs = read_refs(self.store, adapters_of(owner).key).values()
            assert {f.sha256 for r in refs for f in r.files} == set(self.kept.get(owner.key, []))


TestStoreLife = StoreLife.TestCase
TestStoreLife.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
