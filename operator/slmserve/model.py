# SPDX-License-Identifier: Apache-2.0
"""A model directory, loaded: engine, tokenizer, chat template."""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmserve.config import ServerConfig
from slmserve.engines.base import Engine
from slmserve.engines.onnx_slots import load_engine
from slmserve.errors import StartError
from slmserve.export import ExportConfig, load_export
from slmserve.sampling import NOT_A_NUMBER, Sampler, SamplingParams
from slmserve.template import ChatTemplate, load_template
from slmserve.tokenizer import TextCodec, load_codec
from slmserve.verify import verify_model
from slmwire.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything that answers need; `digest` is empty when nothing states it."""

    directory: Path
    engine: Engine
    codec: TextCodec
    template: ChatTemplate | None
    export: ExportConfig
    digest: str


def load_model(config: ServerConfig) -> LoadedModel:
    """Verify, load and generate one token; raises StartError with reason and cure."""
    _hold_directory(config.model_dir)
    digest = verify_model(
        config.model_dir, expected_digest=config.model_digest, manifest_file=config.manifest_file
    )
    export = load_export(config.model_dir)
    codec = load_codec(config.model_dir)
    template = load_template(config.model_dir)
    engine = load_engine(
        config.model_dir,
        export,
        slots=config.slots,
        context_length=config.context_length,
        threads=config.threads,
    )
    _generate_one(engine)
    return LoadedModel(
        directory=config.model_dir,
        engine=engine,
        codec=codec,
        template=template,
        export=export,
        digest=digest,
    )


def _hold_directory(directory: Path) -> None:
    """Hold a shared lock on the directory until the process ends.

    The fetcher on this node takes it as a sign of use and collects no tree that a server has mapped.
    Where the file system has no locks the store still keeps the newest trees.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)


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
        text = " ".join(str(error).split())[:600]
        raise StartError(Reason.UNFIT, f"the model loads and cannot generate a token: {text}") from error
    if NOT_A_NUMBER in (token, last):
        raise StartError(Reason.UNFIT, "the model's logits are not finite numbers")
