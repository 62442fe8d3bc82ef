# SPDX-License-Identifier: Apache-2.0
"""The address plan: no two nodes share anything, everything fits the kernel's limits."""

import ipaddress

import pytest

from e2e.rig.control_plane import POD_CIDR, SERVICE_CIDR
from e2e.rig.topology import BRIDGE_ADDRESS, MAX_EDGE_NODES, NETWORK, plan_nodes


def test_three_edge_nodes_stand_in_two_sites_with_one_pilot() -> None:
    labels = {node.name: dict(node.labels) for node in plan_nodes(3)}
    assert list(labels) == ["server-0", "edge-1", "edge-2", "edge-3"]
    assert labels["server-0"] == {"node-role.kubernetes.io/control-plane": "true"}
    assert [labels[f"edge-{i}"]["slmops.dev/site"] for i in (1, 2, 3)] == ["site-a", "site-b", "site-a"]
    assert [name for name, own in labels.items() if own.get("slmops.dev/ring") == "pilot"] == ["edge-1"]
    assert [name for name, own in labels.items() if own.get("slmops.dev/edge") == "true"] == [
        "edge-1",
        "edge-2",
        "edge-3",
    ]


def test_nothing_is_shared_by_two_nodes() -> None:
    nodes = plan_nodes(MAX_EDGE_NODES)
    for attribute in ("name", "address", "pod_subnet", "netns", "veth", "cgroup"):
        assert len({getattr(node, attribute) for node in nodes}) == len(nodes), attribute


def test_addresses_lie_in_their_networks() -> None:
    for node in plan_nodes(MAX_EDGE_NODES):
        assert ipaddress.ip_address(node.address) in NETWORK
        assert node.address != BRIDGE_ADDRESS
        assert ipaddress.IPv4Network(node.pod_subnet).subnet_of(ipaddress.IPv4Network(POD_CIDR))
        assert len(node.veth) <= 15
    assert not ipaddress.ip_network(POD_CIDR).overlaps(ipaddress.ip_network(SERVICE_CIDR))


@pytest.mark.parametrize("count", [0, -1, MAX_EDGE_NODES + 1])
def test_an_impossible_number_of_nodes_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="edge nodes"):
        plan_nodes(count)
