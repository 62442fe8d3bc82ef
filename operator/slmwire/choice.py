# SPDX-License-Identifier: Apache-2.0
"""Which engine suits a model on a device, and the figures that say so."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMeasurement:
    """One engine with the model on this device; what was not measured is None."""

    decode_tokens_per_second: float | None = None
    """One stream, after its first token."""
    aggregate_tokens_per_second: float | None = None
    """Four streams together, their prompts' time included."""
    prefill_tokens_per_second: float | None = None
    """Prompt tokens of one stream by the time to its first token."""
    memory_bytes: int | None = None
    """Peak resident set of a process with only this engine."""
    golden_score: float | None = None
    """Share of the golden cases that were answered as expected, 0..1; None when the model has none."""
    golden_samples: int = 0
    error: str = ""
    """Why the engine cannot be taken; empty when it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine that was chosen, and for what the choice holds."""

    engine: str
    """Name of the engine; empty when none can serve the model."""
    model_digest: str
    """`sha256:<hex>` of the model's manifest; empty when nothing stated it."""
    versions: Mapping[str, str]
    """Version of the library by candidate."""
    cpus: int
    """CPUs that the process could use."""
    measured: Mapping[str, EngineMeasurement] = field(default_factory=dict)
    """By candidate; empty when there was only one."""

    def holds_for(self, *, model_digest: str, versions: Mapping[str, str], cpus: int) -> bool:
        """Whether it was made for the same bytes, the same engines and as many CPUs.

        An unknown digest fits nothing: without one nobody can tell which model was measured.
        """
        same = (self.model_digest, dict(self.versions), self.cpus) == (model_digest, dict(versions), cpus)
        return same and bool(model_digest) and self.engine in self.versions

    def to_json(self) -> str:
        """The form that `parse_choice` reads."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)


def parse_measurement(body: Any) -> EngineMeasurement:
    """Read one measurement; raises ValueError, TypeError or AttributeError for anything else."""
    for name, value in body.items():
        kinds = (str,) if name == "error" else (int, float, type(None))
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
    return EngineMeasurement(**body)


def parse_choice(text: str | bytes) -> EngineChoice | None:
    """Inverse of `to_json`; None for anything else (the file may be of another version, or cut off)."""
    try:
        body = json.loads(text)
        measured = {str(name): parse_measurement(value) for name, value in body.pop("measured").items()}
        versions = body.pop("versions")
        texts = (body["engine"], body["model_digest"], *versions.values())
        if not all(isinstance(value, str) for value in texts) or type(body["cpus"]) is not int:
            return None
        return EngineChoice(measured=measured, versions=versions, **body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
