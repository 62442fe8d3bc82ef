# SPDX-License-Identifier: Apache-2.0
"""A node's own part of the cgroup tree, version 1 or 2: where its pods live, and how they are all ended.

The node's daemons, and with them every container shim, run in `<root>/host` of one hierarchy; pods run
below `<root>/kubepods` of all. Killing by cgroup reaches processes whose parents died long ago.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

from e2e.rig.shell import RigError

MOUNT: Final = Path("/sys/fs/cgroup")
_HOST: Final = "host"
# What the kubelet demands of its root (k8s.io/kubernetes pkg/kubelet/cm), and what else version 1 offers.
_V1_KILL_HIERARCHY: Final = "pids"


def is_version_2() -> bool:
    """Whether the machine has the unified hierarchy only."""
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Mounted hierarchies: one on version 2, one per controller on version 1."""
    if is_version_2():
        return [MOUNT]
    return sorted(entry for entry in MOUNT.iterdir() if entry.is_dir() and not entry.is_symlink())


def create_cgroup(root: str) -> Path:
    """Make the node's root (`/name`) everywhere; return the directory that its daemons enter."""
    name = root.strip("/")
    if is_version_2():
        _delegate(MOUNT)
        (MOUNT / name).mkdir(exist_ok=True)
        _delegate(MOUNT / name)
        host = MOUNT / name / _HOST
        host.mkdir(exist_ok=True)
        return host
    for hierarchy in hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
    cpuset = MOUNT / "cpuset"
    for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, and then nothing may enter it
        if (cpuset / file).exists():
            (cpuset / name / file).write_text((cpuset / file).read_text())
    host = MOUNT / _V1_KILL_HIERARCHY / name / _HOST
    host.mkdir(exist_ok=True)
    return host


def _delegate(directory: Path) -> None:
    for controller in (directory / "cgroup.controllers").read_text().split():
        try:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # some (cpu beside real-time processes) cannot be; the kubelet says which it misses


def pids_in(root: str) -> set[int]:
    """Processes anywhere below the node's root."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        # os.walk passes over groups that go away meanwhile; rglob raises.
        for directory, _, _ in os.walk(hierarchy / root.strip("/")):
            try:
                found.update(int(pid) for pid in Path(directory, "cgroup.procs").read_text().split())
            except OSError:
                continue  # the group went away between listing and reading
    return found - {0, os.getpid()}


def kill_cgroup(root: str, *, timeout_seconds: float = 20) -> int:
    """SIGKILL everything below the node's root until nothing is left; return how many were met.

    Raises RigError when something survives. Killed by membership read just before, round by round, so
    that processes which fork meanwhile are met too.
    """
    limit = time.monotonic() + timeout_seconds
    met: set[int] = set()
    while pids := pids_in(root):
        met |= pids
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > limit:
            raise RigError(f"processes {sorted(pids)} in cgroup {root} survive SIGKILL")
        time.sleep(0.05)
    return len(met)


def remove_cgroup(root: str) -> None:
    """Delete the node's groups, deepest first; the groups must be empty of processes."""
    for hierarchy in hierarchies():
        top = hierarchy / root.strip("/")
        if not top.is_dir():
            continue
        groups = [Path(directory) for directory, _, _ in os.walk(top, topdown=False)]
        for group in groups:
            for attempt in range(40):
                try:
                    group.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:  # EBUSY: the kernel is still taking the dead apart
                    if attempt == 39:
                        raise RigError(f"cannot remove cgroup {group}: {error}") from error
                    time.sleep(0.05)
