# SPDX-License-Identifier: Apache-2.0
"""A site behind one thin line: network namespaces for the origin, the site's switch and its nodes.

Nothing of it touches the machine's own network, so that the namespaces going away is all there is to
clean up. The line is the origin's way out (a token bucket); among the nodes there is no limit.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from e2e.rig.paths import CHECKOUT
from e2e.rig.shell import RigError, run

ORIGIN: Final = "slmb-origin"
SWITCH: Final = "slmb-lan"
ORIGIN_ADDRESS: Final = "10.98.0.1"
ORIGIN_PORT: Final = 8090
_WAIT_SECONDS: Final = 15.0


def parse_sent_bytes(table: str, *, device: str) -> int:
    """Bytes that a device has sent, from the text of /proc/<pid>/net/dev; ValueError when it is not there."""
    for line in table.splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() == device:
            return int(counters.split()[8])
    raise ValueError(f"there is no device {device}")


class Lab:
    """The namespaces and the origin, from entering to leaving; `root` is what the origin serves."""

    def __init__(self, *, nodes: int, root: Path, megabits_per_second: float) -> None:
        self.nodes: tuple[str, ...] = tuple(f"slmb-{number}" for number in range(1, nodes + 1))
        self._root = root
        self._megabits_per_second = megabits_per_second
        self._origin: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the nodes find the origin."""
        return f"http://{ORIGIN_ADDRESS}:{ORIGIN_PORT}"

    def address(self, node: str) -> str:
        """A node's address at the site."""
        return f"10.98.0.{11 + self.nodes.index(node)}"

    def __enter__(self) -> "Lab":
        self._remove()  # what a killed run left
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def command(self, node: str, *words: str | Path) -> list[str]:
        """The command line that runs `words` in the node's network, killed with this process."""
        return [
            "nsenter", f"--net=/run/netns/{node}", "setpriv", "--pdeathsig", "KILL",
            *(str(word) for word in words),
        ]  # fmt: skip

    def start(
        self, node: str, *words: str | Path, env: Mapping[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        """Start a command in the node's network; its pid is that of the command itself."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(node, *words), env=dict(env), stdin=subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip

    def sent_bytes(self) -> int:
        """Bytes that the origin has put on the line, headers included."""
        if self._origin is None:
            raise RigError("the origin does not run")
        return parse_sent_bytes(Path(f"/proc/{self._origin.pid}/net/dev").read_text(), device="eth0")

    def wait_answer(self, node: str, url: str) -> None:
        """Wait until something answers there with a success."""
        limit = time.monotonic() + _WAIT_SECONDS
        while run(self.command(node, "curl", "-sf", "-o", "/dev/null", url), check=False).returncode:
            if time.monotonic() > limit:
                raise RigError(f"{url} does not answer on {node}")
            time.sleep(0.05)

    def _make(self) -> None:
        for name in (SWITCH, ORIGIN, *self.nodes):
            run(["ip", "netns", "add", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
        run(["ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", SWITCH, "link", "set", "br0", "up"])
        plugs = {ORIGIN: ORIGIN_ADDRESS} | {node: self.address(node) for node in self.nodes}
        for number, (name, address) in enumerate(plugs.items()):
            port = f"port{number}"
            run(
                ["ip", "-n", SWITCH, "link", "add", port, "type", "veth",
                 "peer", "name", "eth0", "netns", name]
            )  # fmt: skip
            run(["ip", "-n", SWITCH, "link", "set", port, "master", "br0", "up"])
            run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0"])
            run(["ip", "-n", name, "link", "set", "eth0", "up"])
        # A short queue: what lies in it when a fetcher is killed is sent in vain, whoever fetches.
        run(
            ["tc", "-n", ORIGIN, "qdisc", "replace", "dev", "eth0", "root", "tbf",
             "rate", f"{round(self._megabits_per_second * 1000)}kbit", "burst", "128kb", "latency", "15ms"]
        )  # fmt: skip
        words = [
            sys.executable, "-m", "e2e.rig.fileserver", f"--root={self._root}",
            f"--address={ORIGIN_ADDRESS}", f"--port={ORIGIN_PORT}",
        ]  # fmt: skip
        env = {"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self._origin = self.start(ORIGIN, *words, env=env, log=self._root / "origin.log")
        self.wait_answer(ORIGIN, f"{self.url}/origin.log")

    def _remove(self) -> None:
        if self._origin is not None:
            stop(self._origin)
            self._origin = None
        for name in (*self.nodes, ORIGIN, SWITCH):
            if (Path("/run/netns") / name).exists():
                run(["ip", "netns", "del", name])


def stop(*processes: "subprocess.Popen[bytes]") -> None:
    """SIGKILL and wait."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def need_commands(names: Sequence[str]) -> None:
    """RigError with the cure when a command is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise RigError(f"not installed: {', '.join(missing)}; install the Debian packages that have them")
