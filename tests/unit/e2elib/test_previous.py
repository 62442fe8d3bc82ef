# SPDX-License-Identifier: Apache-2.0
"""The source of an earlier release comes from history, and its absence is told with the cure."""

import subprocess
from pathlib import Path

import pytest

from e2e.lib import previous
from e2e.rig import RigError

FILES = (
    "charts/slmops/Chart.yaml", "crds/a.yaml", "operator/a.py", "locks/a.txt", "e2e/rig/a.sh", "docs/a.md",
    ".containerignore", "Containerfile.operator", "Containerfile.runtime",
)  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit with all that a release is made of."""
    root = tmp_path / "clone"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", "-C", str(root), *words.split()], check=True, timeout=30)
    monkeypatch.setattr(previous, "CHECKOUT", root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_a_commit_is_extracted_once_and_without_the_rest(clone: Path) -> None:
    read = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=30
    )
    folder = previous.extract_source(read.stdout.strip())
    assert (folder / "charts" / "slmops" / "Chart.yaml").read_text() == "charts/slmops/Chart.yaml"
    assert (folder / "Containerfile.runtime").is_file() and not (folder / "docs").exists()
    (folder / "mark").touch()
    assert previous.extract_source(folder.name) == folder and (folder / "mark").exists()


def test_a_clone_without_the_commit_is_told_how_to_get_it(clone: Path) -> None:
    with pytest.raises(RigError, match="git fetch --unshallow"):
        previous.extract_source("0" * 40)
