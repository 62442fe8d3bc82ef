# SPDX-License-Identifier: Apache-2.0
"""The orders model, where HTTP costs more than the model, against genai's generator in process.

A step takes 0.06 ms, less than a token costs on its way through any server: what the throughput over
HTTP shows is HTTP, so decoding is measured in process as well. A static batch is shown beside and sets
no target: it is no server, since all its prompts are as long and all answers begin and end together.
"""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.bench.serve_client import Timing, find_quantile, find_rate, run_load
from e2e.bench.serve_inside import InsideLoad
from e2e.bench.serve_peer import Peer, first_tokens_in_turn
from e2e.bench.serve_rows import Row, cost_row, rate_row, show_rows
from e2e.bench.serve_sides import RunningServer, Side, serve_ours
from slmserve.template import load_template
from slmserve.tokenizer import load_codec

ROOT: Final = Path(__file__).parents[2]
ORDERS: Final = ROOT / "e2e/models/orders/v1-int4"
_CONCURRENCY: Final = (1, 4, 8)
_SLOTS: Final = 8
_SINGLE: Final = "genai, one at a time"
_NEVER_BELOW: Final = 1.0
_DECODING_AT_8: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Prompts of token ids and the most new tokens for each."""

    name: str
    prompts: tuple[list[int], ...]
    new: int


def build_loads() -> tuple[Load, Load]:
    """Real instructions to the orders model, and the one with the longest answer."""
    codec, template = load_codec(ORDERS), load_template(ORDERS)
    if template is None:
        raise RuntimeError("the orders model has no chat template")
    cases = [json.loads(line) for line in (ORDERS / "golden.jsonl").read_text().splitlines()]
    cases.sort(key=lambda case: len(case["expected"]))
    prompts = [codec.encode(template.render(c["messages"]), add_special_tokens=False) for c in cases]
    mixed = tuple((prompts * 4)[:160])
    mean = statistics.mean(len(prompt) for prompt in mixed)
    return (
        Load(name=f"{len(mixed)} instructions of {mean:.0f} tokens", prompts=mixed, new=100),
        Load(name="48 times the longest answer", prompts=(prompts[-1],) * 48, new=100),
    )


def bench_orders(rounds: int, work: Path) -> list[Row]:
    """Throughput over HTTP, then decoding in process."""
    mixed, longest = build_loads()
    peer = Peer(ORDERS, mixed.prompts, mixed.new)
    print(
        f"\norders v1-int4: genai runs best with {peer.settings or 'the settings of the export'}", flush=True
    )
    side = Side(name="onnxruntime", model_dir=ORDERS, command=serve_ours("onnxruntime"))
    with RunningServer(side, slots=_SLOTS, threads=0, context=0, work=work) as server:
        rows = _over_http(server, peer, mixed, rounds)
    show_rows(rows)
    inside = _in_process(peer, longest, rounds)
    show_rows(inside)
    return rows + inside


def _describe(load: Load) -> str:
    return f"orders v1-int4: {load.name}; {os.cpu_count()} CPUs"


def _over_http(server: RunningServer, peer: Peer, load: Load, rounds: int) -> list[Row]:
    ours: dict[int, list[list[Timing]]] = {c: [] for c in _CONCURRENCY}
    single = []
    run_load(server.port, load.prompts[:_SLOTS], 8, concurrency=_SLOTS)
    for _ in range(rounds):
        single.append(peer.one_at_a_time(load.prompts, load.new))
        for c in _CONCURRENCY:
            ours[c].append(run_load(server.port, load.prompts, load.new, concurrency=c))
    text = _describe(load)
    peer_rate = statistics.median(find_rate(timings) for timings in single)
    rows = []
    for c in _CONCURRENCY:
        rate = statistics.median(find_rate(timings) for timings in ours[c])
        rows.append(rate_row(f"throughput at {c}, over HTTP", rate, peer_rate, _SINGLE, _NEVER_BELOW, text))
        for share in (0.5, 0.95):
            mine = [find_quantile([t.first - t.sent for t in timings], share) for timings in ours[c]]
            theirs = [find_quantile(first_tokens_in_turn(timings, c), share) for timings in single]
            measure = f"time to first token p{share * 100:.0f} at {c}, over HTTP"
            values = statistics.median(mine) * 1000, statistics.median(theirs) * 1000
            rows.append(cost_row(measure, "ms", *values, _SINGLE, None, text))
    return rows


def _in_process(peer: Peer, load: Load, rounds: int) -> list[Row]:
    """Decoding without HTTP: from the last first token to the first end of each wave of requests."""
    inside = InsideLoad(ORDERS, slots=_SLOTS, threads=0)
    ours: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    theirs: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    for _ in range(rounds):
        for c in _CONCURRENCY:
            theirs[c].append(peer.decoding_rate(load.prompts, load.new, size=c))
            ours[c].append(inside.decoding_rate(load.prompts, load.new, concurrency=c))
    inside.close()
    single = statistics.median(theirs[1])
    rows = []
    for c in _CONCURRENCY:
        name, rate = f"decoding at {c}, in process", statistics.median(ours[c])
        target = _DECODING_AT_8 if c == 8 else _NEVER_BELOW
        rows.append(rate_row(name, rate, single, _SINGLE, target, _describe(load)))
        if c > 1:
            batch, batch_name = statistics.median(theirs[c]), f"genai, static batch of {c}"
            rows.append(rate_row(name, rate, batch, batch_name, None, _describe(load)))
    return rows
