# SPDX-License-Identifier: Apache-2.0
"""`python -m slmserve choose`: the fastest engine on this device that answers as well as the others.

A model directory may hold the files of several engines, and which of them is the fastest depends on the
processor. Each candidate is measured in a process of its own: 64 prompt tokens and 32 generated, one stream
and four, and at most 16 cases of the model's golden set. An engine passes when it did all that, its golden
score is above 0 and at most 5 points below the best one (a model without golden set: when it did all that).
Of those that pass, the one with the highest

    speed = sqrt(decode tokens/s of one stream * tokens/s of four streams together)

is taken: a user alone and a busy device count the same, and being twice as fast at one makes up for being
half as fast at the other. Equal speeds are decided by the order of preference.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from slmserve.config import ConfigError, ServerConfig, available_cpus, parse_config
from slmserve.engines.registry import AUTO, EngineKind, EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.measure import Bounds, measure
from slmserve.sandbox import confine
from slmserve.verify import verify_model
from slmwire.choice import EngineChoice, EngineMeasurement, parse_choice

_log = logging.getLogger(__name__)

BUDGET_SECONDS: Final = 20.0
GOLDEN_TOLERANCE: Final = 0.05
_ROUNDING: Final = 1e-9
_MEMORY_SHARE: Final = 0.9
"""Of the free memory; the rest is for the server itself."""
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


def weigh_speed(measured: EngineMeasurement) -> float:
    """The figure of the module's docstring in tokens/s, 0 when something was not measured."""
    one, four = measured.decode_tokens_per_second, measured.aggregate_tokens_per_second
    return math.sqrt(one * four) if one and four else 0.0


def decide(measured: Mapping[str, EngineMeasurement]) -> str:
    """The engine to take, by the rule of the module's docstring; empty when none passes.

    `measured` is in the order of preference.
    """
    sound = {name: m for name, m in measured.items() if not m.error and weigh_speed(m) > 0}
    scores = [m.golden_score for m in sound.values() if m.golden_score is not None]
    least = max(scores, default=0.0) - GOLDEN_TOLERANCE - _ROUNDING

    def answers_well(m: EngineMeasurement) -> bool:
        if m.golden_score is None:
            return not scores
        return m.golden_score > 0 and m.golden_score >= least

    passing = [name for name, m in sound.items() if answers_well(m)]
    return max(passing, key=lambda name: weigh_speed(sound[name]), default="")


def free_memory_bytes() -> int:
    """What this process may still take: the system's free memory, or what the cgroup leaves; 0: unknown."""
    bounds = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        bounds.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            bounds.append(int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(bounds, default=0))


def choose_engine(
    candidates: Sequence[EngineKind], config: ServerConfig, *, model_digest: str, budget_seconds: float
) -> EngineChoice:
    """Measure the candidates one after the other; with a single one there is nothing to measure.

    The time that is left is divided evenly among the candidates that are left.
    """
    versions = {kind.name: kind.version for kind in candidates}
    measured: dict[str, EngineMeasurement] = {}
    if len(candidates) > 1:
        options = EngineOptions(
            slots=config.slots, context_length=config.context_length, threads=config.threads
        )
        memory_bytes = int(free_memory_bytes() * _MEMORY_SHARE)
        deadline = time.monotonic() + budget_seconds
        for index, kind in enumerate(candidates):
            seconds = max(0.1, (deadline - time.monotonic()) / (len(candidates) - index))
            bounds = Bounds(seconds=seconds, memory_bytes=memory_bytes)
            measured[kind.name] = measure(kind, config.model_dir, options, bounds)
    return EngineChoice(
        engine=decide(measured) if measured else candidates[0].name,
        model_digest=model_digest,
        versions=versions,
        cpus=available_cpus(),
        measured=measured,
    )


def pick_engine(config: ServerConfig, model_digest: str) -> EngineKind:
    """The engine that the server loads; raises StartError when no installed one takes the directory.

    With engine `auto` and several candidates, a choice that was measured before counts while it fits; else
    it is measured now. When none passes, the preferred one is taken: its own failure says more.
    """
    candidates = find_candidates(config.model_dir, config.engine)
    if config.engine != AUTO or len(candidates) == 1:
        return candidates[0]
    choice = read_choice(config.engine_choice_file)
    versions = {kind.name: kind.version for kind in candidates}
    origin = str(config.engine_choice_file)
    if choice is None or not choice.holds_for(
        model_digest=model_digest, versions=versions, cpus=available_cpus()
    ):
        origin = "measured at start"
        choice = choose_engine(candidates, config, model_digest=model_digest, budget_seconds=BUDGET_SECONDS)
    fields = {"engine": choice.engine or candidates[0].name, "origin": origin, "choice": choice.to_json()}
    if choice.engine:
        _log.info("engine chosen", extra={"fields": fields})
    else:
        _log.warning("no engine passed; the preferred one is taken", extra={"fields": fields})
    return next((kind for kind in candidates if kind.name == choice.engine), candidates[0])


def read_choice(path: Path) -> EngineChoice | None:
    """The choice in the file; None when there is no readable one."""
    try:
        return parse_choice(path.read_bytes())
    except OSError:
        return None


def main(argv: Sequence[str]) -> int:
    """Prints the choice as JSON; 0 when an engine was chosen, 1 when none can serve, 2 for bad settings."""
    parser = argparse.ArgumentParser(
        prog="slmserve choose",
        description="Measure the engines that take the model directory and print the best as JSON.",
        epilog="The other flags, and the environment, are those of slmserve: --model-dir, --slots, ...",
    )
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=BUDGET_SECONDS,
        help=f"longest time of all measurements together; default {BUDGET_SECONDS:.0f}",
    )
    given, rest = parser.parse_known_args(argv)
    try:
        config = parse_config(rest, os.environ)
        if not 1 <= given.budget_seconds <= 3600:
            raise ConfigError(f"--budget-seconds is {given.budget_seconds}; it must be between 1 and 3600")
        confine(config.sandbox)
        digest = verify_model(
            config.model_dir, expected_digest=config.model_digest, manifest_file=config.manifest_file
        )
        candidates = find_candidates(config.model_dir, AUTO)
        choice = choose_engine(candidates, config, model_digest=digest, budget_seconds=given.budget_seconds)
        if given.out is not None:
            _write(given.out, choice.to_json() + "\n")
    except (ConfigError, StartError, OSError) as error:
        print(f"slmserve choose: {error}", file=sys.stderr)  # noqa: T201
        return 1 if isinstance(error, StartError) else 2
    print(choice.to_json())  # noqa: T201
    return 0 if choice.engine else 1


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a server may read the file at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
