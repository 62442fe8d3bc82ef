# SPDX-License-Identifier: Apache-2.0
"""The administrator's list of hosts holds for what is asked for and for what servers redirect to."""

from urllib.parse import urlsplit

import pytest

from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.api.source import Source
from slmops.ports.sources import SourceError, SourceResolver
from slmwire.reasons import Reason
from tests.unit.slmfetch.origin import Fault, Origin, serve_origin
from tests.unit.sources.hub import Hub

MANIFEST = b'{"files": [{"path": "a", "size": 1, "sha256": "' + b"0" * 64 + b'"}]}'


def allowing(*urls: str) -> SourceResolver:
    hosts = tuple(urlsplit(url).netloc for url in urls)
    return build_resolver(AddressPolicy(allow_loopback=True, allowed_hosts=hosts))


async def refusal(resolver: SourceResolver, source: Source) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await resolver.resolve(source)
    assert caught.value.reason is Reason.ACCESS_DENIED and caught.value.permanent
    assert "chart value allowedSourceHosts" in str(caught.value)
    return caught.value


def at(origin: Origin) -> Source:
    origin.files["/m.json"] = MANIFEST
    return Source.model_validate({"http": {"url": f"{origin.url}/m.json"}})


async def test_a_host_that_is_not_listed_is_not_asked(origin: Origin) -> None:
    source = at(origin)
    error = await refusal(allowing("http://models.example.com"), source)
    assert urlsplit(origin.url).netloc in str(error) and not origin.seen
    assert await allowing(origin.url).resolve(source)


async def test_a_redirect_to_a_host_that_is_not_listed_is_not_followed(origin: Origin) -> None:
    source = at(origin)
    with serve_origin() as other:
        other.files["/m.json"] = MANIFEST
        origin.faults["/m.json"] = [Fault(redirect=f"{other.url}/m.json")] * 2
        error = await refusal(allowing(origin.url), source)
        assert urlsplit(other.url).netloc in str(error) and not other.seen
        assert await allowing(origin.url, other.url).resolve(source)


async def test_the_hub_and_its_redirects_are_held_to_it(hub: Hub) -> None:
    source = Source.model_validate({"hf": {"repo": "a/b", "endpoint": hub.url}})
    await refusal(allowing("http://models.example.com"), source)
    assert not hub.seen
    hub.answers.append((302, {"Location": "http://127.0.0.1:1/elsewhere"}, b""))
    error = await refusal(allowing(hub.url), source)
    assert "127.0.0.1:1 is asked for or redirected to" in str(error)
