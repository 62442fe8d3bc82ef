# SPDX-License-Identifier: Apache-2.0
"""Our server with each of its engines, against llama.cpp's own server and onnxruntime-genai.

All have the same geometry, random weights (of 4 bits in blocks of 32 unless the name says otherwise), the
same number of threads, and the same prompts, load by load in turn; the median of the rounds counts, so
that a busy device disturbs all alike.
Servers are asked over HTTP, on the same cores: JSON, tokeniser, events and the client are included.
genai is called in process, one request at a time, which no client could do, with one generator made once
and rewound, and with the session settings that suit it best. Our own decoding in process shows what the
web layer costs. The orders model is measured in `serve_tiny`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from e2e.bench.serve_auto import compare_with_best, pick_engine
from e2e.bench.serve_gguf import build_gguf
from e2e.bench.serve_inside import InsideLoad
from e2e.bench.serve_measures import (
    CONCURRENCY,
    MOST,
    RATE,
    Measure,
    Sizes,
    Values,
    draw_prompts,
    measure_genai,
    measure_inside,
    measure_process,
    measure_server,
    warm_server,
)
from e2e.bench.serve_model import QWEN_HALF_BILLION, Geometry, build_model
from e2e.bench.serve_openvino import build_openvino
from e2e.bench.serve_peer import Peer
from e2e.bench.serve_rows import Row, cost_row, rate_row, show_rows
from e2e.bench.serve_sides import RunningServer, Side, serve_llama_cpp, serve_ours
from e2e.bench.serve_tiny import bench_orders
from slmserve.engines.registry import ENGINES

ROOT: Final = Path(__file__).parents[2]
RESULT: Final = ROOT / "docs/benchmarks/serve.json"
DEFAULT_ENGINE: Final = "onnxruntime"
LLAMA_SERVER: Final = "llama.cpp server"
GENAI: Final = "genai, one at a time"
IN_PROCESS: Final = "ours, in process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that our server is measured with."""

    name: str
    engine: str
    """Left out where it is not installed."""
    build: Callable[[Path, Geometry], Path]


def _build_wide(directory: Path, geometry: Geometry) -> Path:
    return build_model(directory, geometry, block=128)


SERVED: Final = (
    Served(name=DEFAULT_ENGINE, engine=DEFAULT_ENGINE, build=build_model),
    Served(name="onnxruntime, blocks of 128", engine=DEFAULT_ENGINE, build=_build_wide),
    Served(name="llama.cpp", engine="llama.cpp", build=build_gguf),
    Served(name="openvino", engine="openvino", build=build_openvino),
)

_TARGETS: Final[Mapping[tuple[str, str], float]] = {
    ("decoding at 1", LLAMA_SERVER): 1.0,
    (f"decoding at {MOST}", LLAMA_SERVER): 2.5,
    (f"time to first token p50 at {MOST}, shared", LLAMA_SERVER): 2.0,
    (f"time to first token p95 at {MOST}, shared", LLAMA_SERVER): 2.0,
    ("decoding at 1", GENAI): 1.0,
    (f"decoding at {MOST}", GENAI): 2.0,
    **{(f"decoding at {c}", IN_PROCESS): 0.98 for c in CONCURRENCY},
}
"""By measure and peer, for the default engine; of times 2.0 means half of the peer's."""


def build_sides(geometry: Geometry, work: Path) -> list[Side]:
    """Our server once for each model whose engine is installed."""
    return [
        Side(
            name=served.name,
            model_dir=served.build(work / served.name, geometry),
            command=serve_ours(kind.name),
        )
        for served in SERVED
        if (kind := ENGINES.get(served.engine)) is not None and kind.installed
    ]


def build_peers(geometry: Geometry, work: Path) -> list[Side]:
    """Other servers."""
    return [
        Side(
            name=LLAMA_SERVER,
            model_dir=build_gguf(work / LLAMA_SERVER, geometry),
            command=serve_llama_cpp,
            ready_path="/health",
            extra={"ignore_eos": True},
        )
    ]


Samples = dict[str, list[Values]]
"""By side, the values of each load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run gave."""

    ours: list[str]
    """Names of our sides."""
    samples: Samples
    picked: str
    """The engine that `auto` picks among those of our sides that bear an engine's name."""


def take_samples(geometry: Geometry, rounds: int, work: Path, threads: int) -> Taken:
    """Measure every side."""
    ours, peers = build_sides(geometry, work), build_peers(geometry, work)
    engines = [side.model_dir for side in ours if side.name in ENGINES]
    picked = pick_engine(engines, work / "auto", slots=MOST, threads=threads, context=geometry.context)
    (model_dir,) = (side.model_dir for side in ours if side.name == DEFAULT_ENGINE)
    sizes, samples = Sizes(), Samples()
    with ExitStack() as stack:
        servers = []
        for side in (*ours, *peers):
            running = RunningServer(side, slots=MOST, threads=threads, context=geometry.context, work=work)
            servers.append(stack.enter_context(running))
            warm_server(running, geometry.vocab)
        peer = Peer(model_dir, [draw_prompts(geometry.vocab, 0, sizes).mixed[0]], 16)
        inside = InsideLoad(model_dir, slots=MOST, threads=threads)
        stack.callback(inside.close)
        for number in range(1, rounds + 1):
            prompts = draw_prompts(geometry.vocab, number, sizes)
            _take_turns(
                samples,
                {
                    **{server.side.name: measure_server(server, prompts) for server in servers},
                    GENAI: measure_genai(peer, prompts),
                    IN_PROCESS: measure_inside(inside, prompts),
                },
            )
            print(f"  round {number} of {rounds}", flush=True)
        for server in servers:
            samples[server.side.name].append(measure_process(server))
    return Taken(ours=[side.name for side in ours], samples=samples, picked=picked)


def _take_turns(samples: Samples, sides: Mapping[str, Iterator[Values]]) -> None:
    """The first load of each side, then the second of each, and so on."""
    for values in zip_longest(*sides.values(), fillvalue=Values()):
        for name, part in zip(sides, values, strict=True):
            samples.setdefault(name, []).append(part)


def find_medians(rounds: Sequence[Values]) -> Values:
    """Of each measure over the rounds that have it."""
    measures = dict.fromkeys(measure for values in rounds for measure in values)
    return {m: statistics.median(values[m] for values in rounds if m in values) for m in measures}


def build_rows(model: str, ours: Sequence[str], samples: Samples) -> list[Row]:
    """Each engine of ours against each peer, measure by measure; what one side lacks is left out."""
    medians = {name: find_medians(rounds) for name, rounds in samples.items()}
    rows = []
    for name in ours:
        for peer in (name for name in medians if name not in ours):
            if peer == IN_PROCESS and name != DEFAULT_ENGINE:
                continue
            for measure, mine in medians[name].items():
                if measure in medians[peer]:
                    rows.append(_compare(model, name, mine, peer, medians[peer][measure], measure))
    return rows


def _compare(model: str, name: str, mine: float, peer: str, theirs: float, measure: Measure) -> Row:
    target = _TARGETS.get((measure.name, peer)) if name == DEFAULT_ENGINE else None
    load = f"{model}: {measure.load}; {os.cpu_count()} CPUs"
    label = f"{measure.name} ({name})"
    if measure.unit == RATE:
        return rate_row(label, mine, theirs, peer, target, load)
    return cost_row(label, measure.unit, mine, theirs, peer, target, load)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and write docs/benchmarks/serve.json; a missed target is reported as missed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds on each model; default 3")
    parser.add_argument("--only", choices=("orders", "geometry"), help="one of the models; writes nothing")
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.only != "geometry":
            rows += bench_orders(given.rounds, work)
        if given.only != "orders":
            size = QWEN_HALF_BILLION
            taken = take_samples(size, given.rounds, work, os.cpu_count() or 1)
            compared = build_rows(f"{size.name} int4", taken.ours, taken.samples)
            engines = {name: find_medians(taken.samples[name]) for name in taken.ours if name in ENGINES}
            load = f"{size.name} int4: the engines {', '.join(engines)}; {os.cpu_count()} CPUs"
            compared += compare_with_best(taken.picked, engines, load)
            show_rows(compared)
            rows += compared
    if given.only is None:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    missed = [row for row in rows if row.met is False]
    print(f"\n{len(rows)} comparisons, {len(missed)} targets missed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
