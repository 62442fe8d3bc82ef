# SPDX-License-Identifier: Apache-2.0
"""From an engine that computes logits to a `LoadedEngine` with our slot scheduler."""

import numpy as np

from slmserve.backend import Backend, Deliver, EngineInfo, GenerationDefaults, LoadedEngine
from slmserve.engines.base import AdapterEngine, Engine, Reuse
from slmserve.engines.loading import brief
from slmserve.errors import StartError
from slmserve.sampling import NOT_A_NUMBER, Sampler, SamplingParams
from slmserve.scheduler import Scheduler
from slmwire.reasons import Reason


def with_scheduler(
    engine: Engine,
    defaults: GenerationDefaults,
    *,
    cache_bytes: int = 0,
    reuse: Reuse = Reuse.PREFIX,
    spare_rows: int = 0,
) -> LoadedEngine:
    """Generate one token, then hand over the engine; raises StartError when it cannot.

    `spare_rows` are rows that the engine has beyond its slots: prefixes of prompts are kept there
    while all slots are busy. `cache_bytes` includes them.
    """
    _generate_one(engine)

    def build_backend(max_queue: int, deliver: Deliver) -> Backend:
        return Scheduler(engine, max_queue=max_queue, deliver=deliver, reuse=reuse, spare_rows=spare_rows)

    return LoadedEngine(
        info=EngineInfo(
            name=engine.name,
            version=engine.version,
            slots=engine.slots,
            max_length=engine.max_length,
            vocab_size=engine.vocab_size,
            cache_bytes=cache_bytes,
            spare_rows=spare_rows,
            adapters=engine.adapters if isinstance(engine, AdapterEngine) else (),
        ),
        defaults=defaults,
        build_backend=build_backend,
    )


def _generate_one(engine: Engine) -> None:
    """Prefill and decode once; raises StartError (Unfit) when that fails or gives no number."""
    prompt = np.arange(min(4, engine.vocab_size), dtype=np.int64)
    try:
        token = Sampler(SamplingParams()).pick(engine.prefill(0, prompt, 0))
        logits = engine.decode(np.array([max(token, 0)], np.int64), np.array([len(prompt)], np.int64))
        last = Sampler(SamplingParams()).pick(logits[0])
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to generate a token") from error
    except Exception as error:
        message = f"the model loads and cannot generate a token: {brief(error)}"
        raise StartError(Reason.UNFIT, message) from error
    if NOT_A_NUMBER in (token, last):
        raise StartError(Reason.UNFIT, "the model's logits are not finite numbers")
