# SPDX-License-Identifier: Apache-2.0
"""Folders in which servers keep examples from feedback: `examples/NAMESPACE/NAME` of a store.

They hold what people wrote. Nothing in them is ever read here, nor given to anybody: a folder is made,
emptied of what has expired, and removed. The folders above belong to us and others may only pass through
them; in a deployment's own its server, by its group, may do what it likes, so no link there is followed.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from slmfetch.config import Owner
from slmfetch.errors import FetchError
from slmfetch.log import log
from slmfetch.store import NO_SPACE, Store
from slmwire.examples import SERVER_GROUP, expiry_of
from slmwire.paths import examples_subpath
from slmwire.reasons import Reason

ABOVE_MODE: Final = 0o711
FOLDER_MODE: Final = 0o770
STRAY_SECONDS: Final = 86_400.0
"""How long what is not named as examples are may stay: the server's temporary files, say."""
_REFUSED: Final = "is a link, or no folder; remove it on the node"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Wanted(StrEnum):
    """What a fetch does with the examples of its deployment."""

    KEPT = "kept"
    """The revision's server keeps some."""
    GONE = "gone"
    """The server that starts next keeps none."""
    UNTOUCHED = "untouched"
    """The revision keeps none, but another one may be serving."""


def settle_examples(store: Store, owner: Owner, wanted: Wanted) -> None:
    """Make or remove the folder of a deployment, and remove what has expired of every one.

    FetchError when the folder cannot be made as the server needs it. Whatever cannot be removed is logged.
    """
    expire_examples(store)
    if wanted is Wanted.KEPT:
        make_folder(store, owner)
    elif wanted is Wanted.GONE:
        remove_examples(store, owner)


def make_folder(store: Store, owner: Owner, *, group: int = SERVER_GROUP) -> None:
    """A folder that `group` may write to; FetchError says why it cannot be. One that is right stays."""
    names = examples_subpath(owner.namespace, owner.deployment).split("/")
    path = store.root
    fds: list[int] = []
    try:
        # Under the lock: a release removes the folders above when they are empty.
        with store.locked():
            fds.append(os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for name in names:
                path /= name
                fds.append(_make(name, path, parent=fds[-1]))
                if name is not names[-1]:
                    _set_mode(fds[-1], ABOVE_MODE)
            _set_group(fds[-1], path, group=group)
            _set_mode(fds[-1], FOLDER_MODE)
    except OSError as error:
        reason = Reason.INSUFFICIENT_CAPACITY if error.errno in NO_SPACE else Reason.INTERNAL_ERROR
        raise FetchError(
            reason, f"cannot make the folder of examples {path}: {error.strerror or error}"
        ) from error
    finally:
        for fd in fds:
            os.close(fd)


def _make(name: str, path: Path, *, parent: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    try:
        fd = os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        raise FetchError(Reason.INTERNAL_ERROR, f"folder of examples: {path} {_REFUSED}") from error
    owner = os.fstat(fd).st_uid
    if owner != os.geteuid():
        os.close(fd)
        raise FetchError(
            Reason.INTERNAL_ERROR,
            f"folder of examples: {path} belongs to uid {owner}, not to uid {os.geteuid()}; remove it on "
            "the node",
        )
    return fd


def _set_group(fd: int, path: Path, *, group: int) -> None:
    if os.fstat(fd).st_gid == group:
        return
    try:
        os.fchown(fd, -1, group)
    except PermissionError as error:
        raise FetchError(
            Reason.INTERNAL_ERROR,
            f"the folder of examples {path} cannot be given to group {group}: the pod's "
            f"securityContext.supplementalGroups must have {group}",
        ) from error


def _set_mode(fd: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def remove_examples(store: Store, owner: Owner) -> None:
    """Remove a deployment's folder with all that is in it; what cannot be removed is logged."""
    if not store.examples.is_dir():
        return
    try:
        with store.locked(), _opened(store.examples) as examples:
            _remove_folder(examples, owner)
    except (OSError, FetchError) as error:
        log("examples cannot be removed", level="error", deployment=owner.key, why=str(error))


def _remove_folder(examples: int | None, owner: Owner) -> None:
    with _opened(owner.namespace, parent=examples) as above:
        if above is None:
            return
        with _opened(owner.deployment, parent=above) as folder:
            if folder is not None:
                # A server that still runs could go on writing.
                os.fchmod(folder, 0o700)
                count = _clear(folder, lambda entry: True, of=owner)
                log("examples are removed", deployment=owner.key, files=count)
        _discard(owner.deployment, above)
    with suppress(OSError):  # others are in it
        os.rmdir(owner.namespace, dir_fd=examples)


def expire_examples(store: Store, *, clock: Callable[[], float] = time.time) -> int:
    """Remove what has expired in the folders of all deployments; returns how many files. Raises nothing.

    What has another name than examples have goes a day after it was last changed, or at once when that
    lies more than a day ahead.
    """
    count = 0
    try:
        with _opened(store.examples) as examples:
            for namespace in _folders(examples):
                with _opened(namespace, parent=examples) as above:
                    for name in _folders(above):
                        owner = Owner(namespace=namespace, deployment=name)
                        with _opened(name, parent=above) as folder:
                            count += _clear(folder, partial(_is_expired, now=clock()), of=owner)
    except OSError as error:
        log("examples cannot be looked through", level="warning", store=str(store.root), why=str(error))
    if count:
        log("expired examples are removed", files=count)
    return count


def _is_expired(entry: os.DirEntry[str], *, now: float) -> bool:
    until = expiry_of(entry.name)
    if until is not None:
        return until <= now
    try:
        return abs(now - entry.stat(follow_symlinks=False).st_mtime) > STRAY_SECONDS
    except OSError:
        return False


@contextmanager
def _opened(name: str | Path, *, parent: int | None = None) -> Iterator[int | None]:
    """A folder, no link; None for anything else, also where nothing is."""
    try:
        if parent is None and not Path(name).is_absolute():
            raise FileNotFoundError  # the folder above is not there either
        fd = os.open(name, _FOLDER, dir_fd=parent)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _folders(folder: int | None) -> list[str]:
    if folder is None:
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _clear(folder: int | None, doomed: Callable[[os.DirEntry[str]], bool], *, of: Owner) -> int:
    """Remove what is `doomed`; returns how much went. Names are not logged: a server may choose them."""
    if folder is None:
        return 0
    gone = stuck = 0
    # Not as a list: there may be any number.
    with os.scandir(folder) as entries:
        for entry in entries:
            if doomed(entry):
                if _discard(entry.name, folder):
                    gone += 1
                else:
                    stuck += 1
    if stuck:
        log("examples cannot be removed; do so on the node", level="error", deployment=of.key, entries=stuck)
    return gone


def _discard(name: str, parent: int) -> bool:
    """Remove whatever has that name, no link is followed; whether nothing has it now."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError:
        # A folder: the server makes none, and what is in one that is not ours may stay.
        with suppress(RecursionError):
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
        try:
            os.lstat(name, dir_fd=parent)
        except OSError:
            return True
        return False
    return True
