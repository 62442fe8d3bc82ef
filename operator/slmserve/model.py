# SPDX-License-Identifier: Apache-2.0
"""A model directory, loaded: engine, tokenizer, chat template."""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from slmserve.backend import BuildBackend, EngineInfo, GenerationDefaults
from slmserve.choose import pick_engine
from slmserve.config import ServerConfig
from slmserve.embedding import Embedder
from slmserve.engines.registry import EngineOptions
from slmserve.template import ChatTemplate, load_template
from slmserve.tokenizer import TextCodec, load_codec
from slmserve.verify import verify_model


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything that answers need; `digest` is empty when nothing states it."""

    directory: Path
    engine: EngineInfo
    defaults: GenerationDefaults
    build_backend: BuildBackend | None
    """None: the model only embeds."""
    codec: TextCodec
    template: ChatTemplate | None
    digest: str
    embedder: Embedder | None = None
    """None: the model only generates."""


def load_model(config: ServerConfig) -> LoadedModel:
    """Verify, load and generate one token; raises StartError with reason and cure."""
    _hold_directory(config.model_dir)
    digest = verify_model(
        config.model_dir, expected_digest=config.model_digest, manifest_file=config.manifest_file
    )
    kind = pick_engine(config, digest)
    codec = load_codec(config.model_dir)
    template = load_template(config.model_dir)
    options = EngineOptions(slots=config.slots, context_length=config.context_length, threads=config.threads)
    loaded = kind.load(config.model_dir, options)
    return LoadedModel(
        directory=config.model_dir,
        engine=loaded.info,
        defaults=loaded.defaults,
        build_backend=loaded.build_backend,
        codec=codec,
        template=template,
        digest=digest,
        embedder=loaded.embedder,
    )


def _hold_directory(directory: Path) -> None:
    """Hold a shared lock on the directory until the process ends.

    The fetcher on this node takes it as a sign of use and collects no tree that a server has mapped.
    Where the file system has no locks the store still keeps the newest trees.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
