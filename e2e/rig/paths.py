# SPDX-License-Identifier: Apache-2.0
"""Where the rig keeps things: built tools, base images and durations in the cache, instances below it."""

import os
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RIG_SOURCE = Path(__file__).resolve().parent
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/slmops`, or `~/.cache/slmops`."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "slmops"


def tools_dir() -> Path:
    """One directory per built tool family."""
    return cache_dir() / "tools"


def instance_dir(name: str) -> Path:
    """State of one rig instance; raises ValueError for a name that is not a lower-case DNS label."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"rig name {name!r} must match {_NAME.pattern}")
    return cache_dir() / "rig" / name


def instances() -> list[str]:
    """Names of the instances that have state, sorted."""
    root = cache_dir() / "rig"
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
