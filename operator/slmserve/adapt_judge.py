# SPDX-License-Identifier: Apache-2.0
"""Is the model with the new adapter better than what serves now? Answered by the server's own code.

The engine has the model's files and the new adapter beside them, under a name of its own. What serves now is
the model with its default adapter where it has one, of an earlier training or a user's, and else the model
alone: that is what the examples held back are compared with. What the golden set may lose is counted from
the model without any training.
"""

import asyncio
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmserve.adapt_prepare import TOKENS_NAME
from slmserve.answers import build_deliver
from slmserve.backend import Backend
from slmserve.config import ServerConfig
from slmserve.errors import StartError
from slmserve.golden import GoldenCase, load_cases, run_golden
from slmserve.model import LoadedModel, load_model
from slmwire.gates import pass_gates
from slmwire.jobs import ADAPTER_FILE, AdapterReport, TrainOrder, TrainOutcome
from slmwire.manifest import ManifestFile, digest_of
from slmwire.paths import GOLDEN_FILE
from slmwire.reasons import Reason

ADAPTER_NAME: Final = Path(ADAPTER_FILE).name
MOST_GOLDEN: Final = 500
"""Of the model's golden set: small devices answer each case twice here, while they serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Answers as expected, 0..1, without the new adapter and with it; None without cases."""

    before: float | None
    after: float | None


def assess(order: TrainOrder, *, held_out: Shares, golden: Shares) -> tuple[TrainOutcome, str]:
    """The outcome, and why."""
    before, after = held_out.before or 0.0, held_out.after or 0.0
    outcome = pass_gates(
        order, before=before, after=after, golden_before=golden.before, golden_after=golden.after
    )
    shown = f"of the held-out examples {before:.3f} were answered as expected before, {after:.3f} with it"
    if outcome is TrainOutcome.NO_GAIN:
        return outcome, f"{shown}; {order.min_gain:g} more is asked for"
    if golden.before is None or golden.after is None:
        return outcome, shown
    of_golden = f"of {GOLDEN_FILE} {golden.before:.3f} without training, {golden.after:.3f} with it"
    if outcome is TrainOutcome.QUALITY_LOSS:
        return outcome, f"{of_golden}; {order.max_quality_loss:g} less is allowed"
    return outcome, f"{shown}; {of_golden}"


async def judge(
    config: ServerConfig, order: TrainOrder, *, work: Path, held_out_dir: Path, deadline_seconds: float
) -> AdapterReport:
    """Load once and answer everything with both; raises StartError, GoldenError, or TimeoutError."""
    adapter = work / ADAPTER_NAME
    if not adapter.is_file():
        raise StartError(Reason.UNFIT, f"the training left no {ADAPTER_NAME}")
    async with asyncio.timeout(deadline_seconds):
        base_digest = await asyncio.to_thread(digest_of, _own_files(config.model_dir, order.name))
        held_out = _read_cases(held_out_dir)
        golden = _spread(load_cases(config.model_dir))
        untrained = "" if config.default_adapter == order.name else config.default_adapter
        trained = _free_name(path.stem for path in (config.model_dir / "adapters").glob("*"))
        model = await asyncio.to_thread(load_model, config, more_adapters={trained: adapter})
        if model.build_backend is None:
            raise StartError(Reason.UNFIT, "the model generates no text; it cannot be adapted")
        deliver = build_deliver(asyncio.get_running_loop())
        backend = model.build_backend(max(64, 2 * model.engine.slots), deliver)
        backend.start()
        try:
            own = await _measure(held_out, model, backend, (config.default_adapter, trained))
            general = await _measure(golden, model, backend, (untrained, trained))
        finally:
            await asyncio.to_thread(backend.close)
    outcome, message = assess(order, held_out=own, golden=general)
    return AdapterReport(
        outcome=outcome,
        message=message,
        sha256=_hash(adapter),
        size_bytes=adapter.stat().st_size,
        base_digest=base_digest,
        examples=_count_lines(work / TOKENS_NAME),
        held_out=len(held_out),
        before=own.before,
        after=own.after,
        golden_samples=len(golden),
        golden_before=general.before,
        golden_after=general.after,
    )


async def _measure(
    cases: list[GoldenCase], model: LoadedModel, backend: Backend, names: tuple[str, str]
) -> Shares:
    if not cases:
        return Shares(before=None, after=None)
    before, after = [(await run_golden(cases, model, backend, adapter=name)).score for name in names]
    return Shares(before=before, after=after)


def _spread(cases: list[GoldenCase]) -> list[GoldenCase]:
    """At most MOST_GOLDEN of them, from begin to end."""
    return cases[:: max(1, math.ceil(len(cases) / MOST_GOLDEN))]


def _read_cases(folder: Path) -> list[GoldenCase]:
    """The held-out examples: the same form as a golden set, so the same reader."""
    cases = load_cases(folder)
    if not cases:
        raise StartError(Reason.UNFIT, f"there is no held-out {GOLDEN_FILE} to judge by; prepare leaves it")
    return cases


def _adapter_path(name: str) -> str:
    return f"adapters/{name}.onnx_adapter"


def _free_name(names: Iterable[str]) -> str:
    taken = set(names)
    name = "trained"
    while name in taken:
        name += "-"
    return name


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _own_files(model_dir: Path, name: str) -> Iterator[ManifestFile]:
    """What the tree's manifest lists, without the adapter of an earlier training."""
    for path in _files(model_dir):
        shown = path.relative_to(model_dir).as_posix()
        if shown != _adapter_path(name):
            yield ManifestFile(path=shown, size=path.stat().st_size, sha256=_hash(path))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
