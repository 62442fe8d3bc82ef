# SPDX-License-Identifier: Apache-2.0
"""What the inference server of one variant is told: its own settings before those of the deployment."""

import json
from dataclasses import dataclass

from slmops.api import SLMDeploymentSpec
from slmops.api.spec import Variant
from slmops.model.config import OperatorConfig
from slmops.planning.effective import EffectiveVariant
from slmwire import env


def optional_env(spec: SLMDeploymentSpec, serving: "Serving") -> list[dict[str, str]]:
    """Settings that came later: absent until they are asked for, so that pods stay what they were."""
    found = [{"name": env.ENGINE, "value": serving.engine}] if serving.engine else []
    phrases = spec.feedback.refusal_phrases if spec.feedback is not None else []
    if phrases:
        found.append({"name": env.REFUSAL_PHRASES, "value": json.dumps(sorted(phrases))})
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Settings of the server; `engine` is empty where the files decide."""

    image: str
    engine: str
    threads: int
    slots: int
    context_length: int
    max_queue: int


def serving_of(spec: SLMDeploymentSpec, variant: Variant, config: OperatorConfig) -> Serving:
    """Settings of a variant of an effective spec."""
    runtime, own = spec.runtime, variant.runtime
    engine = variant.engine or runtime.engine or ""
    profile_image = variant.image if isinstance(variant, EffectiveVariant) else None
    image = runtime.image or profile_image or config.engine_images.get(engine) or config.runtime_image

    def chosen(value: int | None, default: int) -> int:
        return default if value is None else value

    return Serving(
        image=image,
        engine=engine,
        threads=chosen(own.threads if own else None, runtime.threads),
        slots=chosen(own.slots if own else None, runtime.slots),
        context_length=chosen(own.context_length if own else None, runtime.context_length),
        max_queue=chosen(own.max_queue if own else None, runtime.max_queue),
    )
