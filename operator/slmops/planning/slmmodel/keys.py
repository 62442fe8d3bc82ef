# SPDX-License-Identifier: Apache-2.0
"""Identities of versions, variants and measurements, and the names of Jobs that follow from them.

Equal work has an equal identity, so an operator that remembers nothing finds the Jobs that it made.
"""

import hashlib
from typing import Any, Final

from slmops.api import SLMModelSpec
from slmops.api.slmmodel import Recipe
from slmops.model.jobs import Work
from slmops.model.slmmodel import ModelObject
from slmops.planning.revision import canonical

KEY_LENGTH: Final = 16
_SHORT: Final[dict[str, str]] = {"optimise": "opt", "evaluate": "eval"}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:KEY_LENGTH]


def variant_key(spec: SLMModelSpec, recipe: Recipe, digest: str) -> str:
    """Identity of a variant's files: what they are made of and where they go."""
    if not recipe.steps:
        return _hash("source", digest)
    publish = spec.publish.to_body() if spec.publish else {}
    signing = spec.signing.to_body() if spec.signing else {}
    image = recipe.image or spec.jobs.optimizer_image or ""
    return _hash("made", digest, [step.to_body() for step in recipe.steps], image, publish, signing)


def evaluation_key(spec: SLMModelSpec, recipe: Recipe, *, profile: str, digest: str, dataset: str) -> str:
    """Identity of a measurement; `digest` is the variant's, `dataset` that of the dataset or empty."""
    evaluation = spec.evaluation
    scorer = evaluation.scorer.to_body() if evaluation and evaluation.scorer else {}
    image = recipe.runtime_image or spec.jobs.runtime_image or ""
    selector = {} if profile else spec.jobs.node_selector.to_body()
    return _hash("measured", digest, recipe.engine or "", profile, selector, dataset, scorer, image)


def version_key(spec: SLMModelSpec, digest: str) -> str:
    """Identity of a version: another one is judged anew. Gates are not part of it."""
    evaluation = spec.evaluation.model_copy(update={"deadline": "1h"}).to_body() if spec.evaluation else {}
    recipes = [
        [r.name, variant_key(spec, r, digest), r.engine or "", sorted(r.profiles), r.runtime_image or ""]
        for r in spec.recipes
    ]
    return _hash("version", digest, recipes, evaluation, spec.version or "")


def job_name(model: ModelObject, work: Work, key: str, attempt: int) -> str:
    """At most 59 characters: the name is a label value on the pods, too.

    The uid keeps a model apart from an earlier one of the same name, whose Jobs go in the background.
    """
    return f"{model.name}-{_SHORT[work]}-{_hash(model.uid, key)[:10]}-{attempt}"
