# SPDX-License-Identifier: Apache-2.0
"""A Debian base image with Python, made by debootstrap from the system's own mirror and cached.

It stands in for the public base that the Containerfiles name, where no image registry can be reached.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

from e2e.rig.paths import cache_dir
from e2e.rig.progress import step
from e2e.rig.shell import RigError, run

PACKAGES: Final = ("ca-certificates", "libgomp1", "libstdc++6", "python3", "python3-venv")
PRUNED: Final = (
    "boot",
    "home",
    "media",
    "srv",
    "usr/games",
    "usr/include",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/i18n",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/zoneinfo",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)
"""What no container of ours reads; below usr/share/doc only the copyright files stay."""


def parse_codename(os_release: str) -> str:
    """VERSION_CODENAME of an os-release text; raises RigError without one."""
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip().strip('"')
    raise RigError("/etc/os-release names no Debian release")


def parse_mirror(index_targets: str, *, codename: str) -> str:
    """The mirror of the main component, from lines `<codename> <component> <uri>`; empty if none."""
    for line in index_targets.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == codename and words[1] == "main":
            return words[2]
    return ""


def recipe_hash(codename: str) -> str:
    """Ten hex digits over what decides the base's content, as far as it is ours."""
    text = "\n".join((codename, *PACKAGES, *PRUNED, "v1"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def build_base() -> Path:
    """Tar archive of the base root file system; built once (about a minute), then found in the cache."""
    codename = parse_codename(Path("/etc/os-release").read_text())
    target = cache_dir() / "base" / f"{codename}-{recipe_hash(codename)}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        step("base image by debootstrap", key="base image"),
        tempfile.TemporaryDirectory(prefix="slmops-base-", dir=target.parent) as scratch,
    ):
        root = Path(scratch) / "root"
        template = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
        targets = run(["apt-get", "indextargets", "--format", template, "Created-By: Packages"], check=False)
        mirror = parse_mirror(targets.stdout, codename=codename)
        packages = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", packages, codename, str(root), *filter(None, [mirror])]
        run(command, timeout_seconds=1800)
        prune_base(root)
        partial = target.with_suffix(".partial")
        run(["tar", "--numeric-owner", "--sort=name", "-C", root, "-cf", partial, "."])
        partial.replace(target)
    return target


def prune_base(root: Path) -> None:
    """Delete documentation, translations and package caches below a root file system."""
    for entry in PRUNED:
        directory = root / entry
        if directory.is_dir():
            shutil.rmtree(directory)
            directory.mkdir()  # the directory itself may be somebody's mount point
    for file in (root / "usr/share/doc").rglob("*"):
        if file.is_file() and file.name != "copyright":
            file.unlink()
    for bytecode in root.rglob("__pycache__"):
        shutil.rmtree(bytecode)
    python = root / "usr/local/bin/python"
    if not python.exists():
        python.symlink_to("/usr/bin/python3")
