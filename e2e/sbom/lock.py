# SPDX-License-Identifier: Apache-2.0
"""Reads a lock as `uv pip compile --universal --generate-hashes` writes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from packaging.markers import Environment, Marker, default_environment
from packaging.utils import canonicalize_name

PYTHON: Final = "3.11.0"
"""Of the images' base."""
MACHINES: Final = ("x86_64", "aarch64")
_PIN: Final = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^\s;\\]+)\s*(;\s*(?P<marker>[^\\]+))?"
)
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA: Final = re.compile(r"^    #(?: via|  ) +(?P<name>\S+)(?P<project> \(pyproject\.toml\))?$")


class LockError(ValueError):
    """A lock that cannot be read, or has a package without a hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package of a lock."""

    name: str
    """As the registry normalises it."""
    version: str
    sha256: tuple[str, ...]
    """Of every distribution that the lock accepts; one of them is installed."""
    via: frozenset[str] = field(default_factory=frozenset)
    """Packages that ask for it; empty when only the project does."""
    direct: bool = False
    """Whether the project asks for it."""


def read_lock(text: str) -> tuple[Package, ...]:
    """Packages that the images get, which are Linux on any of MACHINES; LockError with the line's words.

    A package that is there for other systems or versions of Python alone is left out.
    """
    packages = []
    for block in _blocks(text):
        pin = _PIN.match(block[0])
        if pin is None:
            raise LockError(f"no pinned package: {block[0]!r}")
        hashes = tuple(sorted({found for line in block for found in _HASH.findall(line)}))
        if not hashes:
            raise LockError(f"{pin['name']} has no hash")
        if pin["marker"] and not _is_wanted(pin["marker"].strip()):
            continue
        asking = [found for line in block[1:] if (found := _VIA.match(line)) is not None]
        packages.append(
            Package(
                name=canonicalize_name(pin["name"]),
                version=pin["version"],
                sha256=hashes,
                via=frozenset(canonicalize_name(found["name"]) for found in asking if not found["project"]),
                direct=any(found["project"] for found in asking),
            )
        )
    return tuple(sorted(packages, key=lambda package: package.name))


def _blocks(text: str) -> list[Sequence[str]]:
    """Lines of each package: the pin, its hashes, and the comments on who asks for it."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith(" "):
            if blocks:
                blocks[-1].append(line)
        else:
            blocks.append([line])
    return list(blocks)


def _is_wanted(marker: str) -> bool:
    return any(Marker(marker).evaluate(dict(_environment(machine))) for machine in MACHINES)


def _environment(machine: str) -> Mapping[str, str]:
    here: Environment = default_environment()
    return {
        **{key: str(value) for key, value in here.items()},
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": PYTHON,
        "python_version": PYTHON.rpartition(".")[0],
        "sys_platform": "linux",
    }
