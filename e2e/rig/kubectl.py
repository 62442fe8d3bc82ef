# SPDX-License-Identifier: Apache-2.0
"""kubectl as the rig's client: the tool a person would use, with its answers parsed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from e2e.rig.render import render_yaml
from e2e.rig.shell import RigError, run

_TOO_BUSY: Final = "TLS handshake timeout"
_HANDSHAKES: Final = 3


class Kubectl:
    """kubectl bound to one kubeconfig; every method raises RigError with kubectl's words on failure."""

    def __init__(self, binary: Path, kubeconfig: Path) -> None:
        self.binary = binary
        self.kubeconfig = kubeconfig

    def __call__(
        self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 120, check: bool = True
    ) -> str:
        """Run kubectl; return its standard output."""
        command: Sequence[str | Path] = [self.binary, "--kubeconfig", self.kubeconfig, *arguments]
        for _ in range(_HANDSHAKES - 1):
            try:
                return run(command, stdin=stdin, timeout_seconds=timeout_seconds, check=check).stdout
            except RigError as error:
                # The API server is there and too busy; nothing was asked of it yet.
                if _TOO_BUSY not in str(error):
                    raise
        return run(command, stdin=stdin, timeout_seconds=timeout_seconds, check=check).stdout

    def raw(self, path: str, *, timeout_seconds: float = 30) -> str:
        """GET a path of the API server."""
        return self("get", "--raw", path, timeout_seconds=timeout_seconds)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of a list."""
        read = self.get(*arguments)
        return list(read.get("items", []))

    def apply(
        self,
        *objects: Mapping[str, Any],
        field_manager: str = "slmops-rig",
        timeout_seconds: float = 120,
    ) -> None:
        """Server-side apply of objects, taking over conflicting fields."""
        self(
            "apply", "--server-side", "--force-conflicts", f"--field-manager={field_manager}", "-f", "-",
            stdin=render_yaml(*objects), timeout_seconds=timeout_seconds,
        )  # fmt: skip
