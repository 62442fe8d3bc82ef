# SPDX-License-Identifier: Apache-2.0
"""Connections to the page are bounded: it shares a process, and its files, with the control loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from slmops.page.server import MAX_CONNECTIONS, Pace, Page, start_server
from tests.unit.page.kit import KitFleet

REQUEST = b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
LONG = Pace(silent_seconds=3600)


@asynccontextmanager
async def served(pace: Pace) -> AsyncIterator[int]:
    fleet = KitFleet()
    serving = await start_server(Page(fleet.source, fleet.feed, pace=pace), host="127.0.0.1", port=0)
    try:
        yield serving.port
    finally:
        await serving.cleanup()


async def ask(port: int, host: str = "127.0.0.1") -> bytes:
    """The status line; empty for a connection that was ended."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(REQUEST)
        return await reader.readline()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_one_connection_too_many_is_ended_and_a_free_place_is_given_again() -> None:
    async with asyncio.timeout(20), served(LONG) as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        while await ask(port):
            pass  # some of them were not accepted yet
        for _, writer in idle:
            writer.close()
        while not await ask(port):
            pass


@pytest.mark.parametrize("said", [b"", REQUEST[:20], REQUEST, REQUEST + REQUEST[:20]])
async def test_who_is_silent_is_let_go(said: bytes) -> None:
    async with asyncio.timeout(20), served(Pace(silent_seconds=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        assert (b"200 OK" in answer) == said.startswith(REQUEST)
        writer.close()


async def test_a_stream_is_not_silence() -> None:
    async with asyncio.timeout(20), served(Pace(silent_seconds=0.1, heartbeat_seconds=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"/static/icon.svg", b"/api/events"))
        for _ in range(5):
            await reader.readuntil(b"still here")
        writer.close()


async def test_all_addresses_are_those_of_both_families() -> None:
    fleet = KitFleet()
    async with asyncio.timeout(20):
        serving = await start_server(Page(fleet.source, fleet.feed), host="::", port=0)
        # With port 0 each family has a port of its own.
        for listening, address in {"0.0.0.0": "127.0.0.1", "::": "::1"}.items():
            names = [opened.getsockname() for opened in serving.listener.sockets]
            port = next(name[1] for name in names if name[0] == listening)
            assert (await ask(port, address)).startswith(b"HTTP/1.1 200")
        await serving.cleanup()
