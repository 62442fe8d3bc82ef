# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.demo`: rig up, install, serve, promote a better version, roll back a bad one."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console

from e2e.demo.narrator import Narrator
from e2e.lib.chat import NodeClient, need_ok
from e2e.lib.deployment import Deployment
from e2e.lib.manifests import PILOT_WAVE
from e2e.lib.observe import condition, is_true, rollout_of
from e2e.lib.release import NAMESPACE, RELEASE, install_operator, rig_images
from e2e.lib.session import Body, Cluster, FaultsUnavailableError, WaitError, open_cluster
from e2e.lib.traffic import Traffic
from e2e.rig import RigError
from e2e.rig.paths import CHECKOUT
from e2e.rig.render import render_yaml
from e2e.rig.tools import tool

QUESTION: Final = "two espressos and a still water to table four"
ROLLOUT: Final = {
    "waves": [PILOT_WAVE, {"name": "all", "percent": 100, "approval": "Manual"}],
    "soak": "10s",
    "quorumPercent": 50,
    "maxUnavailable": "50%",
}
STEP_SECONDS: Final = 240.0


class Demo:
    """The story. Every step waits for what the product is to do, and fails when it does not."""

    def __init__(self, narrator: Narrator, directory: Path) -> None:
        self.tell = narrator
        self.directory = directory
        self.cluster: Cluster
        self.deployment: Deployment
        self.clients: dict[str, NodeClient] = {}

    def run(self) -> None:
        """All chapters."""
        self._cluster()
        self._install()
        self._serve()
        self._chat()
        clients = self.clients.values()
        with Traffic(clients, self.deployment.service_address(), interval_seconds=0.25) as traffic:
            self._promote()
            self._roll_back()
            report = traffic.stop()
        self.tell.chapter("Traffic during both rollouts")
        self.tell.say(report.describe())
        self._next()

    def _cluster(self) -> None:
        self.tell.chapter("1. A cluster: one server, three edge nodes in two sites")
        self.cluster = open_cluster()
        nodes = self.cluster.kubectl("get", "nodes", "-L", "slmops.dev/site,slmops.dev/ring")
        self.tell.command("kubectl get nodes -L slmops.dev/site,slmops.dev/ring")
        self.tell.say(nodes.rstrip())

    def _install(self) -> None:
        self.tell.chapter("2. The operator")
        images = rig_images(self.cluster)
        self.tell.command(f"helm install {RELEASE} charts/slmops --namespace {NAMESPACE} --wait ...")
        install_operator(self.cluster, images=images)
        self.deployment = Deployment(self.cluster, "orders", options={"rollout": ROLLOUT})
        runtime = images.runtime
        self.clients = {
            node: NodeClient(self.cluster, node, image=runtime) for node in self.cluster.edge_nodes
        }
        if self.deployment.find() is not None:
            self.tell.say("an earlier demo left its SLMDeployment: delete it first, to start from nothing")
            self.deployment.delete()

    def _serve(self) -> None:
        self.tell.chapter("3. A language model on every edge node")
        path = self._manifest("v1")
        self.tell.command(f"kubectl apply -f {path}")
        self.deployment.apply("v1")
        self.tell.watch(
            self.deployment,
            lambda found: is_true(found, "Ready") and is_true(found, "RolloutSucceeded"),
            timeout_seconds=STEP_SECONDS,
            what="v1 serving on all nodes",
        )

    def _chat(self) -> None:
        self.tell.chapter("4. Each node answers with its own model, streamed")
        address = self.deployment.service_address()
        for node, client in self.clients.items():
            answer = need_ok(client.ask(address, QUESTION), f"a chat on {node}")
            first = f"{answer.first_seconds * 1000:.0f} ms" if answer.first_seconds is not None else "?"
            self.tell.say(f"{node}: {QUESTION!r}")
            self.tell.say(f"  -> {answer.text}   ({answer.chunks} pieces, first after {first})")

    def _promote(self) -> None:
        self.tell.chapter("5. Version v2, wave by wave; edge-3 loses its link meanwhile")
        path = self._manifest("v2")
        cut = self._cut_link() if self.cluster.is_rig else None
        self.tell.command(f"kubectl apply -f {path}")
        self.deployment.apply("v2")
        self.tell.watch(
            self.deployment,
            lambda found: condition(found, "Progressing").get("reason") == "AwaitingApproval",
            timeout_seconds=STEP_SECONDS,
            what="v2 having passed on the pilot node and waiting for approval",
        )
        self._kubectl_slm("explain", "orders")
        self._kubectl_slm("promote", "orders")
        self.tell.watch(
            self.deployment,
            lambda found: found["status"].get("modelVersion") == "v2" and is_true(found, "RolloutSucceeded"),
            timeout_seconds=STEP_SECONDS,
            what="v2 being promoted",
        )
        self.tell.say("v2 is the stable version.")
        if cut is not None:
            self._heal_link(cut)

    def _kubectl_slm(self, *arguments: str) -> None:
        """Run the plugin as a person would, and show what it says."""
        self.tell.command(f"kubectl slm {' '.join(arguments)}")
        plugin = self.directory / "bin" / "kubectl-slm"
        plugin.parent.mkdir(parents=True, exist_ok=True)
        plugin.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT}/operator exec {sys.executable} -m slmcli "$@"\n')
        plugin.chmod(0o755)
        environment = os.environ | {"KUBECONFIG": str(self.cluster.access.kubeconfig)}
        done = subprocess.run(
            [str(plugin), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.tell.say((done.stdout + done.stderr).rstrip())
        if done.returncode:
            raise WaitError(f"kubectl slm {arguments[0]} ended with {done.returncode}")

    def _cut_link(self) -> str:
        node = self.cluster.edge_nodes[-1]
        self.tell.say(f"{node}: link down")
        self.cluster.rig.node_link_down(node)
        address = self.deployment.service_address()

        def offline() -> bool:
            found = self.cluster.need("node", node)
            return not is_true(found, "Ready")

        self.cluster.wait_for(f"{node} being NotReady", offline, timeout_seconds=90)
        answer = need_ok(self.clients[node].ask(address, QUESTION), f"a chat on {node}")
        self.tell.say(f"{node} is NotReady for the cluster, and still answers on site: {answer.text}")
        return node

    def _heal_link(self, node: str) -> None:
        waves = rollout_of(self.deployment.read()).get("waves", [])
        deferred = sum(wave.get("deferred", 0) for wave in waves)
        self.tell.say(f"{deferred} node(s) deferred. {node}: link up; it converges to the stable version")
        self.cluster.rig.node_link_up(node)
        self.tell.watch(
            self.deployment,
            lambda found: (
                found["status"]["nodes"]["stable"] == len(self.clients)
                and is_true(found, "Ready")
                and condition(found, "Progressing").get("reason") == "Complete"
            ),
            timeout_seconds=STEP_SECONDS,
            what=f"{node} converging",
        )

    def _roll_back(self) -> None:
        self.tell.chapter("6. Version v3 is wrong in a way that only serving shows")
        path = self._manifest("v3")
        self.tell.command(f"kubectl apply -f {path}")
        self.deployment.apply("v3")
        found = self.tell.watch(
            self.deployment,
            lambda found: rollout_of(found).get("step") == "Failed" and is_true(found, "Ready"),
            timeout_seconds=STEP_SECONDS,
            what="v3 being rolled back",
        )
        self.tell.say(f"Rolled back by itself: {condition(found, 'RolloutSucceeded').get('message')}")

    def _manifest(self, version: str) -> Path:
        path = self.directory / f"orders-{version}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_yaml(self.deployment.manifest(version)))
        return path

    def _next(self) -> None:
        self.tell.chapter("The cluster stays up. Try")
        for line in self._suggestions(self.deployment.read()):
            self.tell.say(line)

    def _suggestions(self, resource: Body) -> list[str]:
        lines = [
            f"export KUBECONFIG={self.cluster.access.kubeconfig}",
            f"export PATH={self.directory / 'bin'}:{tool('kubectl').parent}:$PATH",
            "kubectl get slmd -o wide",
            "kubectl describe slmd orders",
            "kubectl get pods -o wide -l slmops.dev/deployment=orders",
            "kubectl get nodes --show-labels | grep slmops",
            f"kubectl -n {NAMESPACE} logs deploy/slmops --tail=20",
            "kubectl slm status orders --watch   # and explain, nodes, history, diff, undo",
            "kubectl slm retry orders   # try v3 once more",
            f"kubectl apply -f {self.directory / 'orders-v1.yaml'}   # back to v1, through the waves",
        ]
        if self.cluster.is_rig:
            lines += [
                f"{sys.executable} -m e2e.rig fault link-down edge-2   # and link-up",
                "make down   # takes everything away",
            ]
        return lines


def main() -> int:
    """Run the demo; exit status 1 when a step did not come about."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description=__doc__)
    parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmops" / "demo"
    console = Console(soft_wrap=False)
    begin = time.monotonic()
    try:
        Demo(Narrator(console), cache).run()
    except (WaitError, RigError, FaultsUnavailableError) as error:
        console.print(str(error), style="red", markup=False)
        console.print("the demo stopped here; `make down` takes the cluster away", style="bold")
        return 1
    console.print(f"done in {time.monotonic() - begin:.0f} s", style="bold green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
