# SPDX-License-Identifier: Apache-2.0
"""A model directory, loaded: engine, tokenizer, chat template."""

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmserve.backend import BuildBackend, EngineInfo, GenerationDefaults
from slmserve.choose import pick_engine
from slmserve.config import ServerConfig
from slmserve.embedding import Embedder
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmserve.template import ChatTemplate, load_template
from slmserve.tokenizer import TextCodec, load_codec
from slmserve.verify import verify_model
from slmwire.reasons import Reason

BASE: Final = "base"
"""What the model without an adapter is called where one is the default."""


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
    default_adapter: str = ""
    """One of the engine's adapters, which answers for the model; empty: none."""


def load_model(config: ServerConfig, *, more_adapters: Mapping[str, Path] | None = None) -> LoadedModel:
    """Verify, load and generate one token; raises StartError with reason and cure.

    `more_adapters` are files beside the directory by name, for engines that take the kind.
    """
    _hold_directory(config.model_dir)
    digest = verify_model(
        config.model_dir, expected_digest=config.model_digest, manifest_file=config.manifest_file
    )
    kind = pick_engine(config, digest)
    codec = load_codec(config.model_dir)
    template = load_template(config.model_dir)
    options = EngineOptions(
        slots=config.slots,
        context_length=config.context_length,
        threads=config.threads,
        more_adapters=tuple((name, str(file)) for name, file in (more_adapters or {}).items()),
    )
    loaded = kind.load(config.model_dir, options)
    _check_default(config.default_adapter, loaded.info.adapters)
    return LoadedModel(
        directory=config.model_dir,
        engine=loaded.info,
        defaults=loaded.defaults,
        build_backend=loaded.build_backend,
        codec=codec,
        template=template,
        digest=digest,
        embedder=loaded.embedder,
        default_adapter=config.default_adapter,
    )


def _check_default(name: str, adapters: tuple[str, ...]) -> None:
    """Raises StartError (Unfit) for a default that is not there, or whose base could not be named."""
    if not name:
        return
    if name not in adapters:
        there = f"has {', '.join(adapters)}" if adapters else "has none"
        raise StartError(
            Reason.UNFIT, f"the default adapter {name!r} is not there: the model directory {there}"
        )
    if BASE in adapters:
        raise StartError(
            Reason.UNFIT,
            f"an adapter called {BASE!r} cannot be used with a default adapter, since {BASE!r} then names the"
            " model without one; give it another name",
        )


def _hold_directory(directory: Path) -> None:
    """Hold a shared lock on the directory until the process ends.

    The fetcher on this node takes it as a sign of use and collects no tree that a server has mapped.
    Where the file system has no locks the store still keeps the newest trees.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
