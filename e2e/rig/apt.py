# SPDX-License-Identifier: Apache-2.0
"""Debian packages that the rig needs, installed from whatever mirror the system is set up with."""

import shutil
from pathlib import Path
from typing import Final

from e2e.rig.paths import RIG_SOURCE
from e2e.rig.progress import step
from e2e.rig.shell import RigError, run

_SERVICES: Final = frozenset({"prometheus", "redis-server"})


def parse_packages(text: str) -> list[str]:
    """Package names of an apt.txt: one a line, `#` starts a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def parse_installed(status: str) -> set[str]:
    """Names that `dpkg-query -f '${Package} ${db:Status-Status}\\n'` reports as installed."""
    rows = (line.split() for line in status.splitlines())
    return {row[0] for row in rows if len(row) == 2 and row[1] == "installed"}


def install_packages() -> list[str]:
    """Install what is missing and return its names; does nothing, fast, when all is there.

    Services that packages start are stopped again: the rig runs its own.
    """
    wanted = parse_packages((RIG_SOURCE / "apt.txt").read_text())
    if shutil.which("dpkg-query") is None:
        raise RigError("the rig runs on Debian or a relative of it: there is no dpkg-query")
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *wanted]
    missing = sorted(set(wanted) - parse_installed(run(query, check=False).stdout))
    if not missing:
        return []
    with step(f"install {', '.join(missing)}", key="apt install"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-q"], env=quiet, timeout_seconds=600)
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        run(install, env=quiet, timeout_seconds=1800)
        # A package enables and, where an init system runs, starts its service.
        services = sorted(_SERVICES & set(missing))
        if services and Path("/run/systemd/system").is_dir():
            run(["systemctl", "disable", "--now", *services], check=False)
    return missing
