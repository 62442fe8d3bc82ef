# SPDX-License-Identifier: Apache-2.0
"""Throughput of our server against onnxruntime-genai's own generator, on the same models in one run.

Against one request at a time ours is measured through HTTP, streaming and tokeniser included, and
the peer is called in process, which no client could do, with the session settings that suit it best.
A static batch is no server (all prompts are as long, and all begin and end together): it is compared
with our scheduler in process. Peer and ours take turns, and the median of the rounds counts, so that
a busy device disturbs both alike.
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
_NEVER_BELOW: Final = 1.0
_DECODING_AT_8: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Prompts of token ids and the most new tokens for each; `decoding`: prompts hardly count."""

    name: str
    prompts: tuple[list[int], ...]
    new: int
    decoding: bool


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
    """Real instructions to the orders model, and long answers from it."""
    codec, template = load_codec(ORDERS), load_template(ORDERS)
    if template is None:
        raise RuntimeError("the orders model has no chat template")
    cases = [json.loads(line) for line in (ORDERS / "golden.jsonl").read_text().splitlines()]
    prompts = [codec.encode(template.render(c["messages"]), add_special_tokens=False) for c in cases]
    chosen = tuple((prompts * 4)[:160])
    mean = statistics.mean(len(p) for p in chosen)
    same = [p for p in prompts if len(p) == statistics.mode(len(q) for q in prompts)]
    return [
        Load(
            name=f"{len(chosen)} instructions of {mean:.0f} tokens", prompts=chosen, new=100, decoding=False
        ),
        Load(
            name=f"48 instructions of {len(same[0])} tokens, answers decoded",
            prompts=tuple((same * 48)[:48]),
            new=100,
            decoding=True,
        ),
    ]


def geometry_loads(vocab: int) -> list[Load]:
    """Random prompts: speed does not depend on what they say."""
    rng = np.random.default_rng(20)

    def prompts(count: int, length: int) -> tuple[list[int], ...]:
        return tuple(rng.integers(3, vocab, length).tolist() for _ in range(count))

    return [
        Load(name="8 prompts of 192 tokens, 48 new", prompts=prompts(8, 192), new=48, decoding=False),
        Load(name="8 prompts of 8 tokens, 64 new", prompts=prompts(8, 8), new=64, decoding=True),
    ]


def _rate(timings: Sequence[Timing]) -> float:
    return sum(t.tokens for t in timings) / max(t.done for t in timings)


def _first_tokens(timings: Sequence[Timing], concurrency: int) -> list[float]:
    """Seconds to the first token of the requests that came together at the start."""
    early = sorted(timings, key=lambda t: (t.sent, t.first))[:concurrency]
    return [t.first - t.sent for t in early]


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(values), share))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Timings of every round, by concurrency."""

    ours: dict[int, list[list[Timing]]]
    inside: dict[int, list[list[Timing]]]
    single: list[list[Timing]]
    batch: dict[int, list[list[Timing]]]


def _measure(server: BenchServer, inside: InsideLoad, peer: Peer, load: Load, rounds: int) -> _Samples:
    equal = len({len(prompt) for prompt in load.prompts}) == 1
    samples = _Samples(
        ours={c: [] for c in _CONCURRENCY},
        inside={c: [] for c in _CONCURRENCY},
        single=[],
        batch={c: [] for c in _CONCURRENCY},
    )
    for concurrency in _CONCURRENCY:
        run_load(server.port, load.prompts[:concurrency], load.new, concurrency=concurrency)
    for _ in range(rounds):
        samples.single.append(peer.one_at_a_time(load.prompts, load.new))
        for concurrency in _CONCURRENCY:
            samples.ours[concurrency].append(
                run_load(server.port, load.prompts, load.new, concurrency=concurrency)
            )
            if equal and concurrency > 1:
                samples.inside[concurrency].append(
                    inside.run(load.prompts, load.new, concurrency=concurrency)
                )
                samples.batch[concurrency].append(peer.batch(load.prompts, load.new, size=concurrency))
    return samples


def _rows(model: str, load: Load, samples: _Samples) -> list[Row]:
    rows = []
    single = statistics.median(_rate(timings) for timings in samples.single)
    text = f"{model}: {load.name}; {os.cpu_count()} CPUs"
    kind = "decoding" if load.decoding else "prompts included"
    for concurrency in _CONCURRENCY:
        ours = statistics.median(_rate(timings) for timings in samples.ours[concurrency])
        target = _DECODING_AT_8 if load.decoding and concurrency == 8 else _NEVER_BELOW
        name = f"throughput at {concurrency} ({kind})"
        rows.append(_compare(name, "tokens/s", ours, single, "genai, one at a time", target, text))
        if samples.batch[concurrency]:
            batch = statistics.median(_rate(timings) for timings in samples.batch[concurrency])
            peer_name = f"genai, static batch of {concurrency}"
            within = statistics.median(_rate(timings) for timings in samples.inside[concurrency])
            rows.append(
                _compare(f"{name}, in process", "tokens/s", within, batch, peer_name, _NEVER_BELOW, text)
            )
        if load.decoding:
            continue
        for share in (0.5, 0.95):
            mine = [_quantile(_first_tokens(t, concurrency), share) for t in samples.ours[concurrency]]
            theirs = [_quantile(_first_tokens(t, concurrency), share) for t in samples.single]
            measure = f"time to first token p{share * 100:.0f} at {concurrency}"
            medians = statistics.median(mine) * 1000, statistics.median(theirs) * 1000
            rows.append(_compare(measure, "ms", *medians, "genai, one at a time", None, text))
    return rows


def _compare(
    measure: str, unit: str, ours: float, peer: float, peer_name: str, target: float | None, load: str
) -> Row:
    ratio = peer / ours if unit == "ms" else ours / peer
    return Row(
        measure=measure,
        unit=unit,
        ours=round(ours, 1),
        peer=round(peer, 1),
        peer_name=peer_name,
        ratio=round(ratio, 2),
        target=target,
        load=load,
    )


def bench_model(name: str, model_dir: Path, loads: Sequence[Load], rounds: int, work: Path) -> list[Row]:
    """All loads on one model."""
    rows: list[Row] = []
    peer = Peer(model_dir, loads[0].prompts, loads[0].new)
    print(f"\n{name}: genai runs best with session settings {peer.settings or 'as exported'}", flush=True)
    inside = InsideLoad(model_dir, slots=_SLOTS)
    with BenchServer(model_dir, slots=_SLOTS, log_file=work / "server.log") as server:
        for load in loads:
            part = _rows(name, load, _measure(server, inside, peer, load, rounds))
            _show(part)
            rows += part
        print(f"  server memory after the loads: {server.resident_bytes() / 2**20:.0f} MiB")
    inside.close()
    return rows


def _show(rows: Sequence[Row]) -> None:
    print(f"  {rows[0].load}")
    for row in rows:
        verdict = "" if row.met is None else ("  ok" if row.met else f"  BELOW {row.target}x")
        print(
            f"    {row.measure:<44} {row.ours:>9.1f} {row.unit:<8} {row.peer_name:<24} {row.peer:>9.1f}"
            f"  {row.ratio:>6.2f}x{verdict}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and write docs/benchmarks/serve.json; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts")
    parser.add_argument("--only", choices=("orders", "geometry"), help="one of the models; writes nothing")
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.only != "geometry":
            rows += bench_model("orders v1-int4", ORDERS, orders_loads(), given.rounds, work)
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
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
