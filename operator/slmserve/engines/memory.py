# SPDX-License-Identifier: Apache-2.0
"""How much memory this process can have at most."""

import os
from pathlib import Path
from typing import Final

_LIMIT_FILE: Final = Path("/sys/fs/cgroup/memory.max")


def memory_limit_bytes() -> int:
    """The cgroup's limit or the machine's memory, whichever is smaller."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_LIMIT_FILE.read_text()))
    except (OSError, ValueError):
        return machine
