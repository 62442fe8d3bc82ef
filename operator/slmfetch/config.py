# SPDX-License-Identifier: Apache-2.0
"""Settings of one run, from the environment and the command line."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from slmwire import env, paths

DEFAULT_S3_REGION: Final = "us-east-1"
"""What servers that know no regions expect."""
DEFAULT_CONNECTIONS: Final = 4
MAX_CONNECTIONS: Final = 16
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class ConfigError(ValueError):
    """A setting is missing or malformed; the message names it and the cure."""


class Auth(StrEnum):
    """How the source is told who asks; values of SLM_SOURCE_AUTH."""

    BEARER = "bearer"
    BASIC = "basic"
    S3 = "s3"
    OCI = "oci"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose pins these are."""

    namespace: str
    deployment: str

    @property
    def key(self) -> str:
        """Folder name below refs/; a namespace has no dot, so the first one separates."""
        return f"{self.namespace}.{self.deployment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to fetch."""

    store_dir: Path
    size_limit_bytes: int = 0
    """Most bytes the store may hold; 0 means only the file system limits it."""
    reserve_bytes: int | None = None
    """Free bytes to leave on the file system; None takes `store.default_reserve_bytes`."""
    keep_previous: int = 1
    auth: Auth = Auth.BEARER
    token_file: Path | None = None
    """Where a bearer token is read; None is anonymous."""
    source_dir: Path = Path(paths.SOURCE_DIR)
    """Where the other kinds of credentials are read."""
    s3_region: str = DEFAULT_S3_REGION
    ca_file: Path | None = None
    file_roots: tuple[Path, ...] = ()
    """Folders that file:// URLs may point into; empty refuses them."""
    high_watermark_percent: int = 0
    """Share of the store's file system that a fetch never fills; 0 leaves it to the reserve."""
    distribution_file: Path | None = None
    """Limits and peers, see slmwire.distribution; None is neither."""
    node: str = ""
    """Our own name in it."""
    connections: int = DEFAULT_CONNECTIONS
    """Connections at once for one large file; 1 turns that off."""
    timeout_seconds: float = 6 * 3600.0
    """Bound on the whole fetch."""
    stall_timeout_seconds: float = 30.0
    """Longest silence of a source before the attempt is given up."""
    attempts: int = 8
    """Consecutive attempts without progress before giving up."""
    max_wait_seconds: float = 120.0
    """Longest single wait inside one run; a longer Retry-After ends the run and is remembered."""


def read_owner(environ: Mapping[str, str]) -> Owner:
    """Namespace and deployment from the environment; ConfigError if missing."""
    return Owner(
        namespace=_name(environ, env.NAMESPACE),
        deployment=_name(environ, env.DEPLOYMENT),
    )


def read_revision(environ: Mapping[str, str]) -> str:
    """Revision from the environment; ConfigError if missing."""
    return _name(environ, env.REVISION)


def read_store_dir(environ: Mapping[str, str]) -> Path:
    """Root of the store."""
    return Path(environ.get(env.STORE_DIR) or paths.STORE_DIR)


def read_count(
    environ: Mapping[str, str], name: str, *, default: int, least: int = 0, most: int | None = None
) -> int:
    """A whole number within bounds from the environment; ConfigError otherwise."""
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is not a whole number; set it to digits only")
    value = int(text)
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ConfigError(f"{name}={text!r} must be {bounds}")
    return value


def read_auth(environ: Mapping[str, str]) -> Auth:
    """How the source is told who asks; ConfigError for an unknown way."""
    text = environ.get(env.SOURCE_AUTH, "") or Auth.BEARER
    try:
        return Auth(text)
    except ValueError as error:
        known = ", ".join(Auth)
        raise ConfigError(f"{env.SOURCE_AUTH}={text!r} is unknown; set one of {known}") from error


def _name(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    # These become path segments: a value such as `..` must not leave the store.
    if not _NAME.fullmatch(value) or ".." in value:
        raise ConfigError(f"{name}={value!r} is not a Kubernetes name; the operator sets it on its pods")
    return value


def read_path(environ: Mapping[str, str], name: str) -> Path | None:
    """A path from the environment, None when unset or empty."""
    value = environ.get(name, "")
    return Path(value) if value else None


def current_environment() -> Mapping[str, str]:
    """The process's environment."""
    return os.environ
