# SPDX-License-Identifier: Apache-2.0
"""What `auto` picks among the engines, and how far that is from the best of them.

The engine that it picks is served like any other, so it is not measured twice: its row has the figures of
the side that runs it.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from e2e.bench.serve_measures import CONCURRENCY, RATE, Measure, Values
from e2e.bench.serve_rows import Row, rate_row

TARGET: Final = 0.95
STREAMS: Final = 4
"""`auto` weighs one stream and this many; see `slmserve.choose`."""


def pick_engine(models: Sequence[Path], directory: Path, *, slots: int, threads: int, context: int) -> str:
    """What `slmserve choose` picks with the files of all `models` in one directory, made here.

    RuntimeError when it could not measure one of them: the comparison would be with those that are left.
    """
    directory.mkdir()
    for model in models:
        for path in model.iterdir():
            if path.is_file() and not (directory / path.name).exists():
                # No symbolic link: ONNX Runtime reads no weights from outside the model's directory.
                (directory / path.name).hardlink_to(path)
    choice = directory.with_suffix(".json")
    command = [
        sys.executable,
        "-m",
        "slmserve",
        "choose",
        "--model-dir",
        str(directory),
        "--out",
        str(choice),
    ]
    command += ["--slots", str(slots), "--threads", str(threads), "--context-length", str(context)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLM_")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ, timeout=300)
    found = json.loads(choice.read_text())
    if failed := {name: row["error"] for name, row in found["measured"].items() if row["error"]}:
        raise RuntimeError(f"choose could not measure {failed}")
    return str(found["engine"])


def compare_with_best(picked: str, medians: Mapping[str, Values], load: str) -> list[Row]:
    """A row for each number of streams, and one for what `auto` goes by; the peer is the best engine there.

    `medians` holds the engines that it chose from, `picked` among them.
    """
    rates = {name: _decoding(values) for name, values in medians.items()}
    for values in rates.values():
        values[0] = math.sqrt(values[1] * values[STREAMS])
    rows = []
    for streams in (0, *CONCURRENCY):
        best = max(rates, key=lambda name: rates[name][streams])
        what = f"decoding at {streams}" if streams else f"decoding, sqrt(at 1 x at {STREAMS})"
        label = f"{what} (auto: {picked})"
        rows.append(
            rate_row(label, rates[picked][streams], rates[best][streams], f"ours, {best}", TARGET, load)
        )
    return rows


def _decoding(values: Values) -> dict[int, float]:
    found: dict[int, float] = {}
    for streams in CONCURRENCY:
        (found[streams],) = (
            value
            for measure, value in values.items()
            if isinstance(measure, Measure)
            and measure.unit == RATE
            and measure.name == f"decoding at {streams}"
        )
    return found
