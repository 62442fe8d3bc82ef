# SPDX-License-Identifier: Apache-2.0
"""Whether what was measured passes the gates."""

from dataclasses import dataclass
from typing import Final

from slmops.api.base import duration_seconds, quantity_value
from slmops.api.slmmodel import Gates, Recipe, SLMModelSpec
from slmops.api.slmmodel_status import ModelEvaluationStatus
from slmops.planning.slmmodel.job_state import Failure

_FIELDS: Final[dict[str, str]] = {"ExactMatch": "exact_match", "Perplexity": "perplexity", "Score": "score"}
_MIB: Final = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The reference's value of the metric. `value` is None without one: `wanting` then says why."""

    value: float | None = None
    wanting: str = ""


def gates_of(spec: SLMModelSpec, recipe: Recipe) -> Gates:
    """The recipe's gates over those of the model."""
    own = recipe.gates.model_dump(exclude_none=True) if recipe.gates else {}
    return spec.gates.model_copy(update=own)


def value_of(evaluation: ModelEvaluationStatus, metric: str) -> float | None:
    """The metric's value; None when it was not measured."""
    text = getattr(evaluation, _FIELDS[metric])
    return float(text) if text else None


def find_failure(
    gates: Gates, measured: ModelEvaluationStatus, *, size_bytes: int, metric: str, yardstick: Yardstick
) -> Failure | None:
    """The first gate that is not passed; None when all are."""
    size = find_size_failure(gates, size_bytes)
    if size is not None:
        return size
    if gates.max_quality_loss is not None:
        failure = _loss_failure(gates.max_quality_loss, measured, metric, yardstick)
        if failure is not None:
            return failure
    quality = value_of(measured, metric)
    if gates.min_quality is not None:
        if quality is None:
            return _not_measured(metric)
        if quality < float(gates.min_quality):
            return _failed(f"{metric} {quality:g} is below {gates.min_quality}")
    if gates.max_memory is not None:
        if measured.memory_bytes is None:
            return _not_measured("memory")
        if measured.memory_bytes > quantity_value(gates.max_memory):
            return _failed(f"memory {_mebibytes(measured.memory_bytes)} is above {gates.max_memory}")
    if gates.min_tokens_per_second is not None:
        if measured.tokens_per_second is None:
            return _not_measured("tokens per second")
        if float(measured.tokens_per_second) < float(gates.min_tokens_per_second):
            return _failed(
                f"{float(measured.tokens_per_second):.3g} tokens/s is below {gates.min_tokens_per_second}"
            )
    if gates.max_first_token is not None:
        if measured.first_token is None:
            return _not_measured("the time to the first token")
        if float(measured.first_token) > duration_seconds(gates.max_first_token):
            return _failed(
                f"first token after {float(measured.first_token):.3g} s is above {gates.max_first_token}"
            )
    return None


def find_size_failure(gates: Gates, size_bytes: int) -> Failure | None:
    """The only gate that needs no measurement."""
    if gates.max_size is not None and size_bytes > quantity_value(gates.max_size):
        return _failed(f"size {_mebibytes(size_bytes)} is above {gates.max_size}")
    return None


def _loss_failure(
    limit: str, measured: ModelEvaluationStatus, metric: str, yardstick: Yardstick
) -> Failure | None:
    if yardstick.value is None:
        return Failure(reason="NoReference", message=yardstick.wanting)
    quality = value_of(measured, metric)
    if quality is None:
        return _not_measured(metric)
    # Of perplexity, more is worse.
    loss = quality - yardstick.value if metric == "Perplexity" else yardstick.value - quality
    relative = limit.endswith("%")
    allowed = float(limit.rstrip("%"))
    if not relative:
        return _failed(f"quality loss {loss:.3g} is above {limit}") if _above(loss, allowed) else None
    if yardstick.value == 0:
        return _failed("quality loss has no measure: the reference's is 0") if loss > 0 else None
    percent = 100 * loss / yardstick.value
    return (
        _failed(f"quality loss {percent:.3g} % is above {allowed:g} %") if _above(percent, allowed) else None
    )


def _above(value: float, limit: float) -> bool:
    # A loss of 0.1 between 0.9 and 0.8 is not above 0.1, whatever binary fractions say.
    return value > limit + 1e-9


def _failed(message: str) -> Failure:
    return Failure(reason="GateFailed", message=message)


def _not_measured(what: str) -> Failure:
    return Failure(reason="NotMeasured", message=f"{what} was not measured, which a gate asks for")


def _mebibytes(amount: float) -> str:
    return f"{amount / _MIB:.4g} MiB"
