# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and labels of the rig's machines: pure, so that every command computes the same."""

import ipaddress
from dataclasses import dataclass
from typing import Final

NETWORK: Final = ipaddress.IPv4Network("10.99.0.0/24")
BRIDGE: Final = "slm-br0"
BRIDGE_ADDRESS: Final = "10.99.0.1"
API_PORT: Final = 6443
REGISTRY_PORT: Final = 5000
MODELS_PORT: Final = 8090
MODELS_TLS_PORT: Final = 8443
PROMETHEUS_PORT: Final = 9090
S3_PORT: Final = 7070
BASIC_REGISTRY_PORT: Final = 5001
TOKEN_REGISTRY_PORT: Final = 5002
TOKEN_PORT: Final = 5003
FAULTY_REGISTRY_PORT: Final = 5004
REGISTRY: Final = f"{BRIDGE_ADDRESS}:{REGISTRY_PORT}"
BASIC_REGISTRY: Final = f"{BRIDGE_ADDRESS}:{BASIC_REGISTRY_PORT}"
TOKEN_REGISTRY: Final = f"{BRIDGE_ADDRESS}:{TOKEN_REGISTRY_PORT}"
FAULTY_REGISTRY: Final = f"{BRIDGE_ADDRESS}:{FAULTY_REGISTRY_PORT}"
USER: Final = "e2e"
PASSWORD: Final = "e2e-password-of-no-worth"
"""Of both guarded registries and, as access key and secret key, of the S3 server."""
MAX_EDGE_NODES: Final = 20
CONTROL_PLANE_LABEL: Final = "node-role.kubernetes.io/control-plane"
_POD_NETWORK: Final = ipaddress.IPv4Network("10.42.0.0/16")
_FIRST_HOST: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One real node: its place in the address plan is `index` (0 is the server)."""

    name: str
    index: int
    labels: tuple[tuple[str, str], ...]

    @property
    def address(self) -> str:
        """The node's address on the bridge."""
        return str(NETWORK[_FIRST_HOST + self.index])

    @property
    def pod_subnet(self) -> str:
        """The node's /24 of pod addresses, from the top of the pod network.

        The controller-manager hands out the same network from the bottom (to fake nodes too, which
        never use it), so the two do not meet below some two hundred nodes.
        """
        return str(list(_POD_NETWORK.subnets(new_prefix=24))[255 - self.index])

    @property
    def netns(self) -> str:
        """Name of the node's network namespace in /run/netns."""
        return f"slm-{self.name}"

    @property
    def veth(self) -> str:
        """Host side of the node's link (an interface name ends at 15 characters)."""
        return f"slm-ve{self.index}"

    @property
    def cgroup(self) -> str:
        """The node's root in the cgroup tree."""
        return f"/slmops-{self.name}"


def plan_nodes(edge_count: int) -> tuple[NodeSpec, ...]:
    """The server and `edge_count` edge nodes: sites in turn, the first edge node in the pilot ring."""
    if not 1 <= edge_count <= MAX_EDGE_NODES:
        raise ValueError(f"a rig has 1 to {MAX_EDGE_NODES} edge nodes, not {edge_count}")
    nodes = [NodeSpec(name="server-0", index=0, labels=((CONTROL_PLANE_LABEL, "true"),))]
    for index in range(1, edge_count + 1):
        labels = [("slmops.dev/edge", "true"), ("slmops.dev/site", "site-a" if index % 2 else "site-b")]
        if index == 1:
            labels.append(("slmops.dev/ring", "pilot"))
        nodes.append(NodeSpec(name=f"edge-{index}", index=index, labels=tuple(labels)))
    return tuple(nodes)
