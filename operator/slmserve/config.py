# SPDX-License-Identifier: Apache-2.0
"""What the process is told at start: environment first, command-line flags override."""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmserve.redact import build_rules
from slmserve.sandbox import SandboxMode
from slmwire import env, paths
from slmwire.examples import ExampleSettings, parse_settings

_QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")


class ConfigError(ValueError):
    """A setting is out of range; the message names it, its value and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this process is, as the operator sees it; every metric carries these."""

    namespace: str = ""
    deployment: str = ""
    revision: str = ""
    variant: str = ""
    model: str = ""
    model_version: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of the server's certificate chain and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplesFolder:
    """Where corrected answers are kept, and which."""

    path: Path
    settings: ExampleSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one server process; times in seconds, sizes in bytes."""

    identity: Identity
    model_dir: Path
    model_digest: str
    """`sha256:<hex>` that the model directory must have; empty means unchecked."""
    manifest_file: Path
    host: str
    port: int
    engine: str
    """Name of an engine of `engines.registry`, or `auto`; empty: the preferred one for the files."""
    engine_choice_file: Path
    """What was measured for engine `auto`, see slmwire.choice; may be absent."""
    threads: int
    """0 means what suits the model and the CPUs."""
    slots: int
    context_length: int
    """Tokens per slot, prompt and answer together; 0 means the model's own limit."""
    max_queue: int
    evaluate: bool
    drain_seconds: float
    max_body_bytes: int
    stuck_seconds: float
    """A step that takes longer than this makes /healthz fail."""
    termination_log: Path
    api_keys_file: Path | None = None
    """Keys that clients may use; None: everybody may ask."""
    refusal_phrases: tuple[str, ...] = ()
    """An answer that begins with one of these counts as a refusal; empty: none is looked for."""
    tls: TlsFiles | None = None
    """None: plain HTTP."""
    sandbox: SandboxMode = SandboxMode.OFF
    """Whether the process gives up opening connections; `parse_config` has another default."""
    examples: ExamplesFolder | None = None
    """None: none are kept, and no prompt is remembered."""
    default_adapter: str = ""
    """LoRA adapter that answers requests for the model alone; empty: none."""


def available_cpus() -> int:
    """CPUs this process may use: affinity, and the cgroup's quota where it is smaller."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA_FILE.read_text().split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def _truth(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"", "1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not true or false")


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slmserve", description=__doc__)

    def option(flag: str, variable: str, default: str, kind: type | None = None) -> None:
        shown = f"environment {variable}; default {default or 'empty'}"
        parser.add_argument(flag, type=kind or str, default=environ.get(variable) or default, help=shown)

    option("--namespace", env.NAMESPACE, "")
    option("--deployment", env.DEPLOYMENT, "")
    option("--revision", env.REVISION, "")
    option("--variant", env.VARIANT, "")
    option("--model", env.MODEL, "")
    option("--model-version", env.MODEL_VERSION, "")
    option("--node", env.NODE, "")
    option("--model-dir", env.MODEL_DIR, paths.MODEL_DIR)
    option("--model-digest", env.MODEL_DIGEST, "")
    option("--manifest-file", env.MANIFEST_FILE, paths.MANIFEST_FILE)
    option("--port", env.PORT, str(paths.HTTP_PORT), int)
    option("--engine", env.ENGINE, "")
    option("--engine-choice-file", env.ENGINE_CHOICE_FILE, paths.ENGINE_CHOICE_FILE)
    option("--threads", env.THREADS, "0", int)
    option("--slots", env.SLOTS, "4", int)
    option("--context-length", env.CONTEXT_LENGTH, "0", int)
    option("--max-queue", env.MAX_QUEUE, "32", int)
    option("--drain-seconds", env.DRAIN_SECONDS, "30", float)
    option("--api-keys-file", env.API_KEYS_FILE, "")
    option("--refusal-phrases", env.REFUSAL_PHRASES, "")
    option("--tls-cert-file", env.TLS_CERT_FILE, "")
    option("--tls-key-file", env.TLS_KEY_FILE, "")
    option("--sandbox", env.SANDBOX, SandboxMode.AUTO)
    option("--examples-dir", env.EXAMPLES_DIR, "")
    option("--examples", env.EXAMPLES, "")
    option("--default-adapter", env.DEFAULT_ADAPTER, "")
    parser.add_argument(
        "--evaluate",
        type=_truth,
        default=environ.get(env.EVALUATE, "true"),
        help=f"environment {env.EVALUATE}; run the model's golden set before ready; default true",
    )
    parser.add_argument("--host", default="", help="address to listen on; default all, IPv4 and IPv6")
    parser.add_argument("--max-body-bytes", type=int, default=1 << 20, help="largest request; default 1 MiB")
    parser.add_argument("--stuck-seconds", type=float, default=120.0, help="longest step that is healthy")
    parser.add_argument(
        "--termination-log", default=paths.TERMINATION_LOG, help="where a failed start says why"
    )
    return parser


PHRASE_MARKS: Final = " \"'*_#>-"
"""Before the first letter of an answer and of a phrase these are no difference."""


def _phrases(text: str) -> tuple[str, ...]:
    try:
        phrases = json.loads(text or "[]")
    except ValueError:
        phrases = None
    if not isinstance(phrases, list) or not all(isinstance(p, str) and p.strip() for p in phrases):
        raise ConfigError('--refusal-phrases must be a JSON list of texts, such as ["I cannot help"]')
    for phrase in phrases:
        # Nothing of it would be left, and every answer begins with nothing.
        if all(letter.isspace() or letter in f"{PHRASE_MARKS}\u2018\u2019\u201c\u201d" for letter in phrase):
            raise ConfigError(f"--refusal-phrases has {phrase!r}, which has no letter; leave it out")
    return tuple(phrases)


def _examples(folder: str, text: str) -> ExamplesFolder | None:
    if not folder:
        return None
    try:
        settings = parse_settings(text)
        build_rules(settings)
    except ValueError as error:
        raise ConfigError(
            f"--examples cannot be followed: {error}; give the JSON of retention_seconds, max_examples,"
            " redact and patterns, or no --examples-dir"
        ) from error
    for name, value in (
        ("retention_seconds", settings.retention_seconds),
        ("max_examples", settings.max_examples),
    ):
        if value < 1:
            raise ConfigError(f"--examples has {name} {value}; it must be at least 1")
    return ExamplesFolder(path=Path(folder), settings=settings)


def parse_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Read the settings; raises ConfigError for a value that makes no sense.

    Unknown flags and unreadable numbers end the process with code 2, as argparse does.
    """
    given = _parser(environ).parse_args(argv)
    for name, least, most in (
        ("port", 0, 65_535),
        ("threads", 0, 1024),
        ("slots", 1, 256),
        ("context_length", 0, 1 << 22),
        ("max_queue", 0, 100_000),
        ("drain_seconds", 0, 86_400),
        ("max_body_bytes", 1024, 1 << 30),
        ("stuck_seconds", 1, 86_400),
    ):
        value = getattr(given, name)
        if not least <= value <= most:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {value}; it must be between {least} and {most}")
    if bool(given.tls_cert_file) != bool(given.tls_key_file):
        raise ConfigError("--tls-cert-file and --tls-key-file belong together; give both or none")
    if given.sandbox not in set(SandboxMode):
        raise ConfigError(f"--sandbox is {given.sandbox!r}; it must be one of {', '.join(SandboxMode)}")
    tls = None
    if given.tls_cert_file:
        tls = TlsFiles(certificate=Path(given.tls_cert_file), key=Path(given.tls_key_file))
    return ServerConfig(
        identity=Identity(
            namespace=given.namespace,
            deployment=given.deployment,
            revision=given.revision,
            variant=given.variant,
            model=given.model or given.deployment or Path(given.model_dir).name,
            model_version=given.model_version,
            node=given.node,
        ),
        model_dir=Path(given.model_dir),
        model_digest=given.model_digest,
        manifest_file=Path(given.manifest_file),
        host=given.host,
        port=given.port,
        engine=given.engine,
        engine_choice_file=Path(given.engine_choice_file),
        threads=given.threads,
        slots=given.slots,
        context_length=given.context_length,
        max_queue=given.max_queue,
        evaluate=given.evaluate,
        drain_seconds=given.drain_seconds,
        max_body_bytes=given.max_body_bytes,
        stuck_seconds=given.stuck_seconds,
        termination_log=Path(given.termination_log),
        api_keys_file=Path(given.api_keys_file) if given.api_keys_file else None,
        refusal_phrases=_phrases(given.refusal_phrases),
        tls=tls,
        sandbox=SandboxMode(given.sandbox),
        examples=_examples(given.examples_dir, given.examples),
        default_adapter=given.default_adapter,
    )
