# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.quickstart`: run the commands of docs/quickstart.md, as they stand there, on the rig.

The commands are those of its blocks marked `sh`; `console` marks what is for other places. They run in a copy
of what a clone has, with the rig's kubectl and helm first on PATH, and with these substitutions and no other:

- `registry.example.com` is the rig's registry, and the images get the tag that the rig has built,
- `https://models.example.com` is the rig's web server with e2e/models,
- in the tests, which reach no package registry, `pip install` of the plugin is a program `kubectl-slm` that
  starts the same module from this checkout.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from e2e.lib import Cluster, OperatorImages, open_cluster, rig_images
from e2e.lib.release import clear_operator, image_values
from e2e.rig import RigError
from e2e.rig.paths import CHECKOUT
from e2e.rig.tools import tool

DOCUMENT: Final = CHECKOUT / "docs" / "quickstart.md"
FIRST: Final = "What you need first"
START: Final = "Three commands"
SHIP: Final = "Ship a new version"
END: Final = "Take it away"
REGISTRY: Final = "registry.example.com"
MODELS_URL: Final = "https://models.example.com"
_CLONE: Final = ("charts", "manifests", "operator", "pyproject.toml", "README.md", "LICENSE")
"""What the commands need of a clone."""
_LIMIT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command line of the document and the heading of level 2 that it stands under."""

    section: str
    text: str


def read_commands(text: str) -> tuple[Command, ...]:
    """The commands of all blocks marked `sh`, in order: a line each, or several joined by backslashes."""
    found: list[Command] = []
    section, fence, parts = "", "", []
    for line in text.splitlines():
        mark = re.match(r"\s*```(\w*)", line)
        if mark:
            fence = "" if fence else (mark[1] or "text")
        elif not fence and line.startswith("## "):
            section = line.removeprefix("## ").strip()
        elif fence == "sh" and (stripped := line.strip()) and not stripped.startswith("#"):
            parts.append(stripped.removesuffix("\\").strip())
            if not stripped.endswith("\\"):
                found.append(Command(section=section, text=" ".join(parts)))
                parts = []
    if fence or parts:
        raise ValueError(f"a block of section {section!r} does not end")
    return tuple(found)


def substitute(text: str, *, images: OperatorImages, models_url: str) -> str:
    """A command or a manifest with the names of the place where it runs."""
    for value, image in (("image", images.operator), ("runtimeImage", images.runtime)):
        parts = image_values(image)
        text = text.replace(
            f"{value}.registry={REGISTRY}",
            f"{value}.registry={parts['registry']},{value}.tag={parts['tag']}",
        )
    return text.replace(MODELS_URL, models_url)


@dataclass(slots=True, kw_only=True)
class Workplace:
    """A person's machine: a clone, kubectl, helm and the plugin, and a kubeconfig."""

    cluster: Cluster
    images: OperatorImages
    folder: Path
    commands: tuple[Command, ...] = field(default_factory=lambda: read_commands(DOCUMENT.read_text()))

    @property
    def programs(self) -> Path:
        """Folder that is first on PATH."""
        return self.folder / "bin"

    def prepare(self) -> None:
        """Lay out the clone and the programs, without the plugin."""
        self.programs.mkdir(parents=True)
        for name in ("kubectl", "helm"):
            (self.programs / name).symlink_to(tool(name))
        clone = self.folder / "clone"
        clone.mkdir()
        for name in _CLONE:
            source = CHECKOUT / name
            if source.is_dir():
                shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, clone / name)
        for path in (clone / "manifests" / "examples").glob("*.yaml"):
            path.write_text(self._here(path.read_text()))

    def link_plugin(self) -> None:
        """Put the plugin of this checkout on PATH, in place of its installation."""
        plugin = self.programs / "kubectl-slm"
        plugin.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT}/operator exec {sys.executable} -m slmcli "$@"\n')
        plugin.chmod(0o755)

    def make_environment(self) -> None:
        """A Python environment that `pip` on PATH installs into."""
        self._execute(f"{sys.executable} -m venv {self.folder / 'venv'}")
        for name in ("pip", "python"):
            (self.programs / name).symlink_to(self.folder / "venv" / "bin" / name)

    def run(self, section: str, *, program: str = "") -> list[str]:
        """Run the commands of a section, one after the other, or only those of one program; what each said
        on both streams, as a terminal shows it. RigError with its words for one that fails, and when there
        are none."""
        chosen = [c for c in self.commands if c.section == section and c.text.startswith(program)]
        if not chosen:
            raise RigError(f"{DOCUMENT.name} has no commands under {section!r}")
        return [self._execute(self._here(command.text)) for command in chosen]

    def _here(self, text: str) -> str:
        return substitute(text, images=self.images, models_url=self.cluster.models_url)

    def _execute(self, line: str) -> str:
        print(f"$ {line}", flush=True)
        begin = time.monotonic()
        path = os.pathsep.join([str(self.programs), str(self.folder / "venv" / "bin"), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder / "clone",
            env=os.environ | {"PATH": path, "KUBECONFIG": str(self.cluster.access.kubeconfig)},
            timeout=_LIMIT_SECONDS,
        )
        print(f"{done.stdout.rstrip()}\n# {time.monotonic() - begin:.1f} s", flush=True)
        if done.returncode:
            raise RigError(f"{line} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
        return done.stdout


def main(argv: Sequence[str] | None = None) -> None:
    """All of it, on a cluster that has no SLMOps before and none after."""
    parser = argparse.ArgumentParser(prog="python -m e2e.quickstart", description="Run docs/quickstart.md.")
    parser.add_argument(
        "--plugin",
        choices=("pip", "checkout"),
        default="pip",
        help="pip installs it as the document says (default); checkout starts it from here",
    )
    arguments = parser.parse_args(argv)
    cluster = open_cluster()
    if not cluster.is_rig:
        raise SystemExit("this takes every SLMDeployment away first: it runs on the rig only")
    clear_operator(cluster)
    with tempfile.TemporaryDirectory(prefix="slmops-quickstart-") as folder:
        work = Workplace(cluster=cluster, images=rig_images(cluster), folder=Path(folder))
        work.prepare()
        if arguments.plugin == "pip":
            work.make_environment()
            work.run(FIRST)
        else:
            work.link_plugin()
        for section in (START, SHIP, END):
            work.run(section)


if __name__ == "__main__":
    main()
