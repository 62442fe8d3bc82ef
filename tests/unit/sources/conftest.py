# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.ports.sources import SourceResolver
from tests.unit.slmfetch.origin import Origin, serve_origin
from tests.unit.sources.hub import Hub, serve_hub


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine between us and loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serve_origin() as running:
        yield running


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def resolver() -> SourceResolver:
    return build_resolver(AddressPolicy(allow_loopback=True))
