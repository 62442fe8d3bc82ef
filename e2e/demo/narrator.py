# SPDX-License-Identifier: Apache-2.0
"""Tells a story on the terminal: headings, commands, and a table that redraws while one waits.

On a terminal the table is live; in a pipe or a log there is a line whenever the situation changes.
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from e2e.demo.view import one_line, render
from e2e.lib.deployment import Deployment
from e2e.lib.session import Body, WaitError
from e2e.rig import RigError

_REFRESH_SECONDS = 1.0


class Narrator:
    """Prints to `console`; times are counted from its creation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begin = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        seconds = int(time.monotonic() - self._begin)
        self.console.print()
        self.console.rule(
            f"[bold]{title}[/bold]  [dim]{seconds // 60}:{seconds % 60:02d}[/dim]", align="left"
        )

    def say(self, text: str) -> None:
        """A line of explanation."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def command(self, text: str) -> None:
        """A command as a user would type it."""
        self.console.print(Text(f"$ {text}", style="bold"), soft_wrap=True)

    def watch(
        self,
        deployment: Deployment,
        until: Callable[[Body], bool],
        *,
        timeout_seconds: float,
        what: str,
    ) -> Body:
        """Show the deployment until `until` accepts it; raises WaitError after the timeout."""
        limit = time.monotonic() + timeout_seconds
        said = ""
        with Live(
            console=self.console, auto_refresh=False, transient=False, vertical_overflow="visible"
        ) as live:
            while True:
                resource = self._read(deployment)
                if resource is not None:
                    if self.console.is_terminal:
                        nodes = deployment.cluster.find_all("nodes", selector="slmops.dev/edge=true")
                        pods = deployment.pods("serve")
                        live.update(render(resource, nodes, pods), refresh=True)
                    elif (line := one_line(resource)) != said:
                        said = line
                        self.say(f"  {line}")
                    if until(resource):
                        break
                if time.monotonic() > limit:
                    raise WaitError(
                        f"{what} did not come about within {timeout_seconds:g} s\n{deployment.describe()}"
                    )
                time.sleep(_REFRESH_SECONDS)
        if not self.console.is_terminal:
            nodes = deployment.cluster.find_all("nodes", selector="slmops.dev/edge=true")
            self.console.print(render(resource, nodes, deployment.pods("serve")))
        return resource

    @staticmethod
    def _read(deployment: Deployment) -> Body | None:
        try:
            resource = deployment.find()
        except RigError:
            return None  # the API server may be busy for a moment
        if resource is None or not resource.get("status"):
            return None
        current = resource["status"].get("observedGeneration") == resource["metadata"]["generation"]
        return resource if current else None
