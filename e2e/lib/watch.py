# SPDX-License-Identifier: Apache-2.0
"""Follows Kubernetes objects: each version of each object once, at the moment it is seen."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import IO, Any

from e2e.lib.session import Cluster

Seen = Callable[[str, Mapping[str, Any], float], None]


class Watch:
    """`kubectl get --watch` in the background; `take` gets (ADDED|MODIFIED|DELETED, object, seconds
    since the epoch) from a thread of the watch's own. A context manager."""

    def __init__(self, cluster: Cluster, *arguments: str, take: Seen) -> None:
        kubectl = cluster.kubectl
        self._command = [
            str(kubectl.binary), "--kubeconfig", str(kubectl.kubeconfig), "get", *arguments,
            "--watch", "--output-watch-events", "-o", "json",
        ]  # fmt: skip
        self._take = take

    def __enter__(self) -> "Watch":
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self._thread = threading.Thread(target=self._follow, args=(self._process.stdout,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._thread.join(5)

    def _follow(self, stream: IO[str]) -> None:
        for event in read_documents(stream):
            self._take(event["type"], event["object"], time.time())


def read_documents(stream: IO[str]) -> Iterator[Mapping[str, Any]]:
    """JSON documents that follow each other in a stream."""
    decoder = json.JSONDecoder()
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        # kubectl writes a document in one line, or indents it so that it ends with a lone brace.
        if line.rstrip() == "}" or (len(lines) == 1 and line.startswith("{") and line.rstrip().endswith("}")):
            document, _ = decoder.raw_decode("".join(lines))
            lines.clear()
            yield document
