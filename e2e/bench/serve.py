# SPDX-License-Identifier: Apache-2.0
"""Throughput of our server against onnxruntime-genai's own generator, on the same models in one run.

The peer is called in process, which no client could do, with one generator made once and rewound, and
with the session settings that suit it best. Ours is measured over HTTP: JSON, tokeniser, events and the
client, on the same cores, are included. A step of the orders model takes 0.06 ms, less than a token
costs on its way through any server: what its throughput over HTTP shows is HTTP, so its decoding is
measured in process as well. A static batch is shown beside and sets no target: it is no server, since
all its prompts are as long and all answers begin and end together. Peer and ours take turns, and the
median of the rounds counts, so that a busy device disturbs both alike.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from e2e.bench.serve_client import BenchServer, Timing, run_load
from e2e.bench.serve_inside import InsideLoad
from e2e.bench.serve_model import QWEN_HALF_BILLION, build_model
from e2e.bench.serve_peer import Peer
from slmserve.template import load_template
from slmserve.tokenizer import load_codec

ROOT: Final = Path(__file__).parents[2]
ORDERS: Final = ROOT / "e2e/models/orders/v1-int4"
RESULT: Final = ROOT / "docs/benchmarks/serve.json"
_CONCURRENCY: Final = (1, 4, 8)
_SLOTS: Final = 8
_SINGLE: Final = "genai, one at a time"
_NEVER_BELOW: Final = 1.0
_DECODING_AT_8: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Prompts of token ids and the most new tokens for each.

    `decoding`: the prompts are short and of one length, so that decoding is what counts.
    `tiny`: HTTP costs more than the model.
    """

    name: str
    prompts: tuple[list[int], ...]
    new: int
    decoding: bool
    tiny: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: `ratio` is ours/peer for rates and peer/ours for times."""

    measure: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    target: float | None
    load: str

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        return None if self.target is None else self.ratio >= self.target

    def to_json(self) -> dict[str, Any]:
        """The form that docs/benchmarks keeps."""
        names = ("measure", "unit", "ours", "peer", "peer_name", "ratio", "target")
        return {name: getattr(self, name) for name in names} | {"met": self.met, "load": self.load}


def orders_loads() -> list[Load]:
    """Real instructions to the orders model, and the one with the longest answer."""
    codec, template = load_codec(ORDERS), load_template(ORDERS)
    if template is None:
        raise RuntimeError("the orders model has no chat template")
    cases = [json.loads(line) for line in (ORDERS / "golden.jsonl").read_text().splitlines()]
    cases.sort(key=lambda case: len(case["expected"]))
    prompts = [codec.encode(template.render(c["messages"]), add_special_tokens=False) for c in cases]
    mixed = tuple((prompts * 4)[:160])
    mean = statistics.mean(len(prompt) for prompt in mixed)
    return [
        Load(
            name=f"{len(mixed)} instructions of {mean:.0f} tokens",
            prompts=mixed,
            new=100,
            decoding=False,
            tiny=True,
        ),
        Load(
            name="48 times the longest answer",
            prompts=(prompts[-1],) * 48,
            new=100,
            decoding=True,
            tiny=True,
        ),
    ]


def geometry_loads(vocab: int) -> list[Load]:
    """Random prompts: speed does not depend on what they say."""
    rng = np.random.default_rng(20)

    def build(length: int, new: int, *, decoding: bool) -> Load:
        prompts = tuple(rng.integers(3, vocab, length).tolist() for _ in range(8))
        name = f"8 prompts of {length} tokens, {new} new"
        return Load(name=name, prompts=prompts, new=new, decoding=decoding, tiny=False)

    return [build(192, 48, decoding=False), build(8, 64, decoding=True)]


def _rate(timings: Sequence[Timing]) -> float:
    return sum(t.tokens for t in timings) / max(t.done for t in timings)


def _first_tokens(timings: Sequence[Timing]) -> list[float]:
    return [t.first - t.sent for t in timings]


def _first_tokens_in_turn(timings: Sequence[Timing], concurrency: int) -> list[float]:
    """As if `concurrency` clients asked a server that takes one request at a time.

    Each client asks again when it has its answer: request i is sent at the end of i - concurrency.
    """
    ends = [0.0] * concurrency + [t.done for t in timings]
    return [t.first - sent for t, sent in zip(timings, ends, strict=False)]


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(values), share))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """What every round gave, by concurrency."""

    single: list[list[Timing]]
    ours: dict[int, list[list[Timing]]]
    batch: dict[int, list[list[Timing]]]


def _measure(server: BenchServer, peer: Peer, load: Load, rounds: int) -> _Samples:
    samples = _Samples(single=[], ours={c: [] for c in _CONCURRENCY}, batch={c: [] for c in _CONCURRENCY})
    prompts, new = load.prompts, load.new
    run_load(server.port, prompts[:_SLOTS], min(new, 8), concurrency=_SLOTS)
    for _ in range(rounds):
        samples.single.append(peer.one_at_a_time(prompts, new))
        for concurrency in _CONCURRENCY:
            samples.ours[concurrency].append(run_load(server.port, prompts, new, concurrency=concurrency))
            if load.decoding and concurrency > 1:
                samples.batch[concurrency].append(peer.batch(prompts, new, size=concurrency))
    return samples


def _median_rate(rounds: Sequence[list[Timing]]) -> float:
    return statistics.median(_rate(timings) for timings in rounds)


def _server_rows(model: str, load: Load, samples: _Samples) -> list[Row]:
    text = _describe(model, load)
    single = _median_rate(samples.single)
    rows = []
    for concurrency in _CONCURRENCY:
        ours = _median_rate(samples.ours[concurrency])
        name = f"{'decoding' if load.decoding else 'throughput'} at {concurrency}, over HTTP"
        rows.append(_rate_row(name, ours, single, _SINGLE, _target(load, concurrency), text))
        if not load.decoding:
            rows += _first_token_rows(concurrency, samples, text)
        elif batches := samples.batch[concurrency]:
            peer_name = f"genai, static batch of {concurrency}"
            rows.append(_rate_row(name, ours, _median_rate(batches), peer_name, None, text))
    return rows


def _target(load: Load, concurrency: int) -> float:
    return _DECODING_AT_8 if load.decoding and concurrency == 8 else _NEVER_BELOW


def _measure_inside(model: str, model_dir: Path, peer: Peer, load: Load, rounds: int) -> list[Row]:
    """Decoding without HTTP: from the last first token to the first end of each wave of requests."""
    inside = InsideLoad(model_dir, slots=_SLOTS)
    ours: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    theirs: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    for _ in range(rounds):
        for c in _CONCURRENCY:
            theirs[c].append(peer.decoding_rate(load.prompts, load.new, size=c))
            ours[c].append(inside.decoding_rate(load.prompts, load.new, concurrency=c))
    inside.close()
    text = _describe(model, load)
    single = statistics.median(theirs[1])
    rows = []
    for c in _CONCURRENCY:
        name, rate = f"decoding at {c}, in process", statistics.median(ours[c])
        rows.append(_rate_row(name, rate, single, _SINGLE, _target(load, c), text))
        if c > 1:
            batch = statistics.median(theirs[c])
            rows.append(_rate_row(name, rate, batch, f"genai, static batch of {c}", None, text))
    return rows


def _describe(model: str, load: Load) -> str:
    return f"{model}: {load.name}; {os.cpu_count()} CPUs"


def _first_token_rows(concurrency: int, samples: _Samples, text: str) -> list[Row]:
    rows = []
    for share in (0.5, 0.95):
        mine = [_quantile(_first_tokens(t), share) for t in samples.ours[concurrency]]
        theirs = [_quantile(_first_tokens_in_turn(t, concurrency), share) for t in samples.single]
        ours, peer = statistics.median(mine) * 1000, statistics.median(theirs) * 1000
        rows.append(
            Row(
                measure=f"time to first token p{share * 100:.0f} at {concurrency}, over HTTP",
                unit="ms",
                ours=round(ours, 1),
                peer=round(peer, 1),
                peer_name=_SINGLE,
                ratio=round(peer / ours, 2),
                target=None,
                load=text,
            )
        )
    return rows


def _rate_row(measure: str, ours: float, peer: float, peer_name: str, target: float | None, load: str) -> Row:
    return Row(
        measure=measure,
        unit="tokens/s",
        ours=round(ours, 1),
        peer=round(peer, 1),
        peer_name=peer_name,
        ratio=round(ours / peer, 2),
        target=target,
        load=load,
    )


def bench_model(name: str, model_dir: Path, loads: Sequence[Load], rounds: int, work: Path) -> list[Row]:
    """All loads on one model."""
    rows: list[Row] = []
    peer = Peer(model_dir, loads[0].prompts, loads[0].new)
    print(f"\n{name}: genai runs best with session settings {peer.settings or 'as exported'}", flush=True)
    for load in loads:
        if load.tiny and load.decoding:
            part = _measure_inside(name, model_dir, peer, load, rounds)
        else:
            with BenchServer(model_dir, slots=_SLOTS, log_file=work / "server.log") as server:
                part = _server_rows(name, load, _measure(server, peer, load, rounds))
                print(f"  server memory after the load: {server.resident_bytes() / 2**20:.0f} MiB")
        _show(part)
        rows += part
    return rows


def _show(rows: Sequence[Row]) -> None:
    print(f"  {rows[0].load}")
    for row in rows:
        verdict = "" if row.met is None else ("  ok" if row.met else f"  BELOW {row.target}x")
        print(
            f"    {row.measure:<42} {row.ours:>9.1f} {row.unit:<8} {row.peer_name:<24} {row.peer:>9.1f}"
            f"  {row.ratio:>6.2f}x{verdict}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and write docs/benchmarks/serve.json; a missed target is reported as missed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench.serve", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="rounds on the larger model, and a third of those on the tiny one",
    )
    parser.add_argument("--only", choices=("orders", "geometry"), help="one of the models; writes nothing")
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.only != "geometry":
            rows += bench_model("orders v1-int4", ORDERS, orders_loads(), given.rounds * 3, work)
        if given.only != "orders":
            size = QWEN_HALF_BILLION
            model_dir = build_model(work / "model", size)
            rows += bench_model(
                f"{size.name} int4", model_dir, geometry_loads(size.vocab), given.rounds, work
            )
    if given.only is None:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    missed = [row for row in rows if row.met is False]
    print(f"\n{len(rows)} comparisons, {len(missed)} targets missed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
