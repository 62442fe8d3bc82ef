# SPDX-License-Identifier: Apache-2.0
"""What a command is given beside its arguments: the cluster, the time and the terminal."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from slmcli.cluster import Cluster
from slmcli.terminal import Terminal


class Connection(Protocol):
    """A cluster and the namespace that is meant when none is named."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def namespace(self) -> str: ...


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the program. `connect` is called when a command first needs the cluster."""

    connect: Callable[[], Connection]
    terminal: Terminal
    err: TextIO
    inp: TextIO = field(default_factory=lambda: sys.stdin)
    chosen_namespace: str | None = None
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _connection: Connection | None = field(default=None, init=False)

    @property
    def cluster(self) -> Cluster:
        """The cluster; CliError when there is no usable kubeconfig."""
        return self._connected().cluster

    @property
    def namespace(self) -> str:
        """The namespace of the flag, else of the context."""
        return self.chosen_namespace or self._connected().namespace

    def say(self, text: str) -> None:
        """A line for the person, not for a pipe."""
        self.err.write(text + "\n")
        self.err.flush()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self.connect()
        return self._connection
