# SPDX-License-Identifier: Apache-2.0
"""What libraries say by the ways of Python that write texts by themselves is told by its place alone."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from slmserve.journal import describe_exception
from tests.unit.slmserve.process import ROOT

_SAYING = """
import logging, sys, warnings
from slmserve.journal import log_uncaught, setup_logging

class Broken:
    def __repr__(self):
        raise ValueError(sys.argv[1])

setup_logging()
log_uncaught()
log = logging.getLogger("library")
log.info("%d cups", sys.argv[1])
log.info("%r", Broken())
warnings.warn(f"cannot write {sys.argv[1]!r}", UserWarning, stacklevel=1)
warnings.warn(f"cannot write {sys.argv[1]!r} either", UserWarning, stacklevel=1)
log.info("all is well")
sys.stdout.close()
log.info("nobody hears of %s", sys.argv[1])
"""


def test_no_text_of_a_warning_or_of_a_log_line_that_cannot_be_written() -> None:
    word = "zqjxk"
    done = subprocess.run(
        [sys.executable, "-c", _SAYING, word],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
    )
    assert word not in done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    # The lines of the standard library move with its version.
    lines = [
        (entry["level"], re.sub(r"\b(__init__|journal)\.py:\d+", r"\1.py", entry["message"]))
        for entry in told
    ]
    assert lines == [
        ("info", "a line that cannot be written: TypeError at __init__.py < journal.py"),
        ("info", "a line that cannot be written: ValueError at <string>:7 < __init__.py < journal.py"),
        ("warning", "a UserWarning at <string>:14"),
        ("warning", "a UserWarning at <string>:15"),
        ("info", "all is well"),
    ]


def test_an_exception_is_described_with_what_caused_it_and_no_message() -> None:
    def fail() -> None:
        try:
            raise KeyError("zqjxk")
        except KeyError as error:
            raise RuntimeError("zqjxk") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    told = re.sub(r":\d+", "", describe_exception(caught.value))
    place = "test_serve_journal.py"
    assert told == f"RuntimeError at {place} < {place}, from KeyError at {place}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "zqjxk", "/zqjxk"), "OSError ENOSPC"),
        (PermissionError(errno.EACCES, "zqjxk"), "PermissionError EACCES"),
        (OSError("zqjxk"), "OSError"),
        (OSError(99_999, "zqjxk"), "OSError"),
    ],
)
def test_what_the_system_refused_is_told_by_its_code(error: OSError, kind: str) -> None:
    assert describe_exception(error) == f"{kind} at an unknown place"
