# SPDX-License-Identifier: Apache-2.0
"""The server marks the model directory that it uses."""

import fcntl
import os
from pathlib import Path

import pytest

from slmserve.model import _hold_directory


def test_directory_in_use_cannot_be_locked_for_collection(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_UN)

    _hold_directory(tmp_path)

    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
