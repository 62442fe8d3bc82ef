# SPDX-License-Identifier: Apache-2.0
"""What is measured on a server with a half-billion model: the same prompts for each in a round.

Prompts are random token ids, new in each round: speed does not depend on what they say, and no server
may know them from the round before. Where requests share the beginning, each server may use its cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from e2e.bench.serve_client import Timing, find_quantile, find_rate, run_load
from e2e.bench.serve_inside import InsideLoad
from e2e.bench.serve_peer import Peer, first_tokens_in_turn
from e2e.bench.serve_sides import RunningServer

CONCURRENCY: Final = (1, 4, 8)
MOST: Final = max(CONCURRENCY)
_FIRST_WORD: Final = 3
"""Smaller token ids are special."""
_SHARES: Final = (0.5, 0.95)

RATE, MILLISECONDS, MEBIBYTES, SECONDS = "tokens/s", "ms", "MiB", "s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a server; of rates more is better, of all else less."""

    name: str
    unit: str
    load: str


Values = dict[Measure, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Tokens of prompts and answers."""

    short: int = 8
    answer: int = 64
    prompt: int = 256
    mixed: int = 192
    mixed_answer: int = 48
    system: int = 256
    tail: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Of one round."""

    sizes: Sizes
    short: list[list[int]]
    fill: dict[int, list[list[int]]]
    """By concurrency: a prompt that was seen once is no measure any more."""
    mixed: list[list[int]]
    shared: list[list[int]]
    shared_again: list[list[int]]
    """With the same beginning as `shared`, and other ends."""


def draw_prompts(vocab: int, seed: int, sizes: Sizes) -> Prompts:
    """The prompts of round `seed`."""
    rng = np.random.default_rng(seed)

    def draw(length: int, count: int = MOST) -> list[list[int]]:
        return [rng.integers(_FIRST_WORD, vocab, length).tolist() for _ in range(count)]

    (system,) = draw(sizes.system, 1)
    return Prompts(
        sizes=sizes,
        short=draw(sizes.short),
        fill={c: draw(sizes.prompt, c) for c in CONCURRENCY},
        mixed=draw(sizes.mixed),
        shared=[[*system, *tail] for tail in draw(sizes.tail)],
        shared_again=[[*system, *tail] for tail in draw(sizes.tail)],
    )


def _decoding(sizes: Sizes, concurrency: int) -> Measure:
    load = f"prompts of {sizes.short} tokens, {sizes.answer} new"
    return Measure(name=f"decoding at {concurrency}", unit=RATE, load=load)


def _filling(sizes: Sizes, concurrency: int) -> Measure:
    load = f"prompts of {sizes.prompt} tokens, 1 new"
    return Measure(name=f"prompt at {concurrency}", unit=RATE, load=load)


def _throughput(sizes: Sizes) -> Measure:
    load = f"prompts of {sizes.mixed} tokens, {sizes.mixed_answer} new"
    return Measure(name=f"throughput at {MOST}", unit=RATE, load=load)


def _first_tokens(load: str, name: str, waits: Sequence[float]) -> Values:
    return {
        Measure(
            name=f"time to first token p{share * 100:.0f} at {MOST}{name}", unit=MILLISECONDS, load=load
        ): find_quantile(waits, share) * 1000
        for share in _SHARES
    }


def _waits(timings: Sequence[Timing]) -> list[float]:
    return [t.first - t.sent for t in timings]


def _prompt_rate(prompts: Sequence[list[int]], timings: Sequence[Timing]) -> float:
    return sum(len(prompt) for prompt in prompts) / max(t.done for t in timings)


def measure_server(server: RunningServer, prompts: Prompts) -> Iterator[Values]:
    """All that can be asked over HTTP, load by load, so that servers can take turns in between."""
    sizes = prompts.sizes

    def ask(asked: Sequence[list[int]], new: int, concurrency: int) -> list[Timing]:
        extra: Mapping[str, Any] = server.side.extra
        return run_load(server.port, asked, new, concurrency=concurrency, extra=extra)

    for c in CONCURRENCY:
        yield {_decoding(sizes, c): find_rate(ask(prompts.short[:c], sizes.answer, c))}
    for c in CONCURRENCY:
        yield {_filling(sizes, c): _prompt_rate(prompts.fill[c], ask(prompts.fill[c], 1, c))}
    mixed, measure = ask(prompts.mixed, sizes.mixed_answer, MOST), _throughput(sizes)
    yield {measure: find_rate(mixed)} | _first_tokens(measure.load, "", _waits(mixed))
    text = f"prompts of {sizes.tail} tokens behind the same {sizes.system}, {sizes.answer} new"
    for name, asked in ((", shared and new", prompts.shared), (", shared", prompts.shared_again)):
        yield _first_tokens(text, name, _waits(ask(asked, sizes.answer, MOST)))


def warm_server(server: RunningServer, vocab: int) -> None:
    """Touch what a first request touches."""
    prompts = draw_prompts(vocab, 1 << 20, Sizes()).short
    run_load(server.port, prompts, 4, concurrency=MOST, extra=server.side.extra)


def measure_genai(peer: Peer, prompts: Prompts) -> Iterator[Values]:
    """The same of a generator in process that takes one request at a time: no server, no HTTP."""
    sizes = prompts.sizes
    for c in CONCURRENCY:
        yield {_decoding(sizes, c): find_rate(peer.one_at_a_time(prompts.short[:c], sizes.answer))}
    for c in CONCURRENCY:
        timings = peer.one_at_a_time(prompts.fill[c], 1)
        yield {_filling(sizes, c): _prompt_rate(prompts.fill[c], timings)}
    mixed, measure = peer.one_at_a_time(prompts.mixed, sizes.mixed_answer), _throughput(sizes)
    waits = first_tokens_in_turn(mixed, MOST)
    yield {measure: find_rate(mixed)} | _first_tokens(measure.load, "", waits)


def measure_inside(inside: InsideLoad, prompts: Prompts) -> Iterator[Values]:
    """Our own decoding without HTTP, to see what the web layer costs."""
    sizes = prompts.sizes
    for c in CONCURRENCY:
        yield {_decoding(sizes, c): inside.rate(prompts.short[:c], sizes.answer)}


def measure_process(server: RunningServer) -> Values:
    """Memory now, and the time from the start of the process to its first 200."""
    return {
        Measure(name="memory after the load", unit=MEBIBYTES, load="resident"): server.resident_bytes()
        / 2**20,
        Measure(name="cold start", unit=SECONDS, load="process to ready"): server.cold_seconds,
    }
