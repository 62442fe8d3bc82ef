# SPDX-License-Identifier: Apache-2.0
"""Checks that keep an SLMModel's spec from being acted on: pure functions, the first finding counts.

The API server makes most of them, too; an object can be older than the schema that it is checked by.
"""

from collections.abc import Callable, Iterator
from typing import Final

from slmops.api import SLMModelSpec
from slmops.api.base import duration_seconds
from slmops.api.recipe_steps import STEP_KINDS, Step
from slmops.api.slmmodel import PUBLISH_KINDS, Gates
from slmops.api.source import SOURCE_KINDS, Source
from slmops.model.config import OperatorConfig
from slmops.model.slmmodel import ModelObject
from slmops.planning.finding import Finding
from slmops.planning.source_hosts import find_host_problem, find_publish_host_problem
from slmops.planning.validate import find_file_problem

MIN_POLL_SECONDS: Final = 10.0
MAX_DEADLINE_SECONDS: Final = 30 * 24 * 3600.0
"""The API server takes no number of any size, and nobody waits for a month."""


def find_problem(model: ModelObject, config: OperatorConfig) -> Finding | None:
    """First finding, or None for a spec that can be acted on."""
    if model.spec is None:
        return Finding(reason="InvalidSpec", message=model.spec_error)
    for check in _CHECKS:
        found = check(model.spec, config)
        if found is not None:
            return found
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidSpec", message=message)


def _sources_of(spec: SLMModelSpec) -> Iterator[tuple[str, Source]]:
    yield "spec.source", spec.source
    if spec.evaluation is not None and spec.evaluation.dataset is not None:
        yield "spec.evaluation.dataset", spec.evaluation.dataset


def _sources(spec: SLMModelSpec, config: OperatorConfig) -> Finding | None:
    for where, source in _sources_of(spec):
        if sum(getattr(source, kind) is not None for kind in SOURCE_KINDS) != 1:
            return _invalid(f"{where}: set exactly one of {', '.join(SOURCE_KINDS)}")
        if source.oci is not None and source.oci.delivery == "ImageVolume":
            return _invalid(f"{where}.oci.delivery: Jobs read the files themselves; use delivery Pull")
        finding = find_file_problem(where, source, config) or find_host_problem(where, source, config)
        if finding is not None:
            return finding
    return None


def _steps(spec: SLMModelSpec, config: OperatorConfig) -> Finding | None:
    for index, recipe in enumerate(spec.recipes):
        where = f"spec.recipes[{index}] ({recipe.name})"
        for number, step in enumerate(recipe.steps):
            problem = _step_problem(step)
            if problem:
                return _invalid(f"{where}.steps[{number}]: {problem}")
    return None


def _step_problem(step: Step) -> str:
    present = [kind for kind in STEP_KINDS if kind in step.to_body()]
    if len(present) != 1:
        given = ", ".join(present) or "none that is known"
        return f"set exactly one of {', '.join(STEP_KINDS)}; there is {given}"
    if step.prune is not None:
        by_pattern = step.prune.method == "NM"
        if by_pattern != (step.prune.pattern is not None) or by_pattern == (
            step.prune.sparsity_percent is not None
        ):
            return "prune: method Magnitude needs sparsityPercent, method NM needs pattern"
        if step.prune.pattern is not None:
            kept, _, group = step.prune.pattern.partition(":")
            if int(kept) >= int(group):
                return f"prune.pattern: {step.prune.pattern} keeps all weights; use for example 2:4"
    if step.slice is not None and not step.slice.feed_forward_percent and not step.slice.heads_percent:
        return "slice: set feedForwardPercent or headsPercent above 0"
    return ""


def _publish(spec: SLMModelSpec, config: OperatorConfig) -> Finding | None:
    made = next((recipe.name for recipe in spec.recipes if recipe.steps), None)
    if made is not None and spec.publish is None:
        return _invalid(f"spec.publish: recipe {made} has steps; say where its files go (oci, s3 or pvc)")
    if spec.publish is not None:
        present = [kind for kind in PUBLISH_KINDS if getattr(spec.publish, kind) is not None]
        if len(present) != 1:
            return _invalid(f"spec.publish: set exactly one of {', '.join(PUBLISH_KINDS)}")
        finding = find_publish_host_problem(spec.publish, config)
        if finding is not None:
            return finding
    for recipe in spec.recipes:
        if recipe.steps and not (recipe.image or spec.jobs.optimizer_image or config.optimizer_image):
            return Finding(
                reason="OptimizerImageMissing",
                message=f"recipe {recipe.name} has steps, and there is no image for them; set "
                "spec.jobs.optimizerImage, or let an administrator set the default (chart value "
                "optimizerImage)",
            )
    return None


def _evaluation(spec: SLMModelSpec, config: OperatorConfig) -> Finding | None:
    names = [recipe.name for recipe in spec.recipes]
    if len(set(names)) != len(names):
        return _invalid("spec.recipes: every name may occur once")
    evaluation = spec.evaluation
    if evaluation is None:
        for where, gates in _gates_of(spec):
            wanting = sorted(set(gates.to_body()) - {"maxSize"})
            if wanting:
                return _invalid(f"{where}.{wanting[0]}: nothing is measured; set spec.evaluation")
        return None
    if evaluation.reference is not None and evaluation.reference not in names:
        return _invalid(
            f"spec.evaluation.reference: there is no recipe {evaluation.reference}; use one of "
            f"{', '.join(names)}"
        )
    if evaluation.metric == "Score" and evaluation.scorer is None:
        return _invalid("spec.evaluation.metric: Score needs spec.evaluation.scorer")
    if evaluation.metric == "Perplexity":
        for where, gates in _gates_of(spec):
            if gates.min_quality is not None:
                return _invalid(f"{where}.minQuality: of perplexity less is better; use maxQualityLoss")
    return None


def _gates_of(spec: SLMModelSpec) -> Iterator[tuple[str, Gates]]:
    yield "spec.gates", spec.gates
    for index, recipe in enumerate(spec.recipes):
        if recipe.gates is not None:
            yield f"spec.recipes[{index}].gates", recipe.gates


def _durations(spec: SLMModelSpec, config: OperatorConfig) -> Finding | None:
    if spec.poll_interval is not None and duration_seconds(spec.poll_interval) < MIN_POLL_SECONDS:
        return _invalid(f"spec.pollInterval: must be at least {MIN_POLL_SECONDS:g}s")
    deadlines = [("spec.jobs.deadline", spec.jobs.deadline)]
    if spec.evaluation is not None:
        deadlines.append(("spec.evaluation.deadline", spec.evaluation.deadline))
    for where, deadline in deadlines:
        if not 1 <= duration_seconds(deadline) <= MAX_DEADLINE_SECONDS:
            return _invalid(f"{where}: must be from 1s to 720h")
    for index, toleration in enumerate(spec.jobs.tolerations):
        where = f"spec.jobs.tolerations[{index}]"
        if toleration.operator == "Exists" and toleration.value:
            return _invalid(f"{where}.value: leave it out with operator: Exists")
        if toleration.operator == "Equal" and not toleration.key:
            return _invalid(f"{where}.key: set it, or use operator: Exists to tolerate every taint")
    return None


_CHECKS: Final[tuple[Callable[[SLMModelSpec, OperatorConfig], Finding | None], ...]] = (
    _sources,
    _steps,
    _publish,
    _evaluation,
    _durations,
)
