# SPDX-License-Identifier: Apache-2.0
"""Running host commands: one helper that raises with the command's own words."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class RigError(RuntimeError):
    """Something the rig needs did not work; the message says what to do or where the log is."""


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_seconds: float | None = 300,
) -> subprocess.CompletedProcess[str]:
    """Run to the end with output captured; raises RigError on failure when `check` is set.

    `env` is added to the current environment. A command that is not installed raises RigError too.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            check=False,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            timeout=timeout_seconds,
        )
    except FileNotFoundError as error:
        raise RigError(f"{words[0]} is not installed: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{' '.join(words)[:300]} did not end within {timeout_seconds:g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise RigError(f"{' '.join(words)[:300]} exited {done.returncode}: {said}")
    return done
