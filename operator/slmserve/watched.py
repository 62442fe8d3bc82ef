# SPDX-License-Identifier: Apache-2.0
"""Has a file changed? For secrets that are replaced while the server runs."""

import os
from pathlib import Path

Stamp = tuple[int, int, int]


def observe_stamp(path: Path) -> Stamp | None:
    """What changes with a file's content, links followed (Kubernetes swaps a link); None: unreadable."""
    try:
        status = os.stat(path)  # noqa: PTH116  asked for every request
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
