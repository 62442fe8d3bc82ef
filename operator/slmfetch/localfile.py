# SPDX-License-Identifier: Apache-2.0
"""file:// sources: files that were put on the node by hand."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from slmfetch.errors import FetchError, IntegrityError
from slmwire.reasons import Reason


def open_local(url: str, *, size: int, offset: int, roots: Sequence[Path]) -> int:
    """Open a regular file below one of `roots` for reading at `offset`; returns its descriptor.

    Without an offset it must have `size` bytes, with one at least so many from there on.

    The path is resolved first, so no symbolic link leads out of the roots.
    """
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if (
        parts.netloc not in ("", "localhost")
        or not path.is_absolute()
        or ".." in path.parts
        or "\0" in str(path)
    ):
        raise FetchError(Reason.UNFIT, f"{url!r} is not file:// followed by an absolute path")
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise FetchError(
            Reason.ACCESS_DENIED,
            f"{path} lies outside the folders that files may come from (allowed: {allowed})",
        )
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FetchError(
            Reason.SOURCE_UNAVAILABLE, f"{path} is not on this node; copy it there, or use a network source"
        ) from error
    except PermissionError as error:
        raise FetchError(
            Reason.ACCESS_DENIED, f"{path} cannot be read; make it readable for root without capabilities"
        ) from error
    except OSError as error:
        raise FetchError(Reason.SOURCE_UNAVAILABLE, f"{path} cannot be opened: {error.strerror}") from error
    info = os.fstat(fd)
    problem = ""
    if not stat.S_ISREG(info.st_mode):
        problem = f"{path} is not a regular file"
    elif info.st_size < offset + size if offset else info.st_size != size:
        problem = f"{path} has {info.st_size} bytes, the manifest promises {offset + size}; copy it again"
    if problem:
        os.close(fd)
        raise IntegrityError(problem)
    os.lseek(fd, offset, os.SEEK_SET)
    return fd
