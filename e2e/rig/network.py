# SPDX-License-Identifier: Apache-2.0
"""The rig's network: one bridge on the host, one namespace and one veth pair per node.

Nothing leaves the machine: pod and service networks are black holes on the host but for the nodes' own
routes, and an nftables rule drops whatever would be forwarded from the bridge to another interface.
"""

import ipaddress
from pathlib import Path
from typing import Final

from e2e.rig.shell import run
from e2e.rig.topology import BRIDGE, BRIDGE_ADDRESS, NETWORK, NodeSpec

BLACKHOLES: Final = ("10.42.0.0/16", "10.43.0.0/16")
_NFT_TABLE: Final = "slmops_rig"
_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
_FIREWALL: Final = f"""\
add table inet {_NFT_TABLE}
delete table inet {_NFT_TABLE}
table inet {_NFT_TABLE} {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname "{BRIDGE}" oifname != "{BRIDGE}" drop
    oifname "{BRIDGE}" iifname != "{BRIDGE}" drop
  }}
}}
"""


def netns_file(spec: NodeSpec) -> Path:
    """The node's network namespace as a file."""
    return Path("/run/netns") / spec.netns


def bridge_exists() -> bool:
    """Whether the rig's bridge is there."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def make_bridge(*, state: Path) -> None:
    """Bridge, black holes, forwarding and firewall; idempotent. Earlier forwarding is kept in `state`."""
    if not bridge_exists():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    prefix = ipaddress.ip_network(NETWORK).prefixlen
    run(["ip", "addr", "replace", f"{BRIDGE_ADDRESS}/{prefix}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    for network in BLACKHOLES:
        run(["ip", "route", "replace", "blackhole", network])
    forward = _FORWARD.read_text().strip()
    if forward != "1":
        (state / "ip_forward").write_text(forward)
        _FORWARD.write_text("1")
    run(["nft", "-f", "-"], stdin=_FIREWALL)


def remove_bridge(*, state: Path) -> None:
    """Undo `make_bridge`; what is gone already is fine."""
    run(["nft", "-f", "-"], stdin=f"add table inet {_NFT_TABLE}\ndelete table inet {_NFT_TABLE}\n")
    for network in BLACKHOLES:
        run(["ip", "route", "del", "blackhole", network], check=False)
    if bridge_exists():
        run(["ip", "link", "del", BRIDGE])
    kept = state / "ip_forward"
    if kept.exists():
        _FORWARD.write_text(kept.read_text())
        kept.unlink()


def make_node_network(spec: NodeSpec) -> None:
    """Namespace, link, addresses and the host's route to the node's pods; idempotent."""
    if not _is_netns(netns_file(spec)):
        netns_file(spec).unlink(missing_ok=True)  # an empty file is what a reboot leaves
        run(["ip", "netns", "add", spec.netns])
    if not Path(f"/sys/class/net/{spec.veth}").exists():
        run(["ip", "link", "add", spec.veth, "type", "veth", "peer", "name", "eth0", "netns", spec.netns])
    run(["ip", "link", "set", spec.veth, "master", BRIDGE, "up"])
    inside = ["ip", "-n", spec.netns]
    run([*inside, "link", "set", "lo", "up"])
    prefix = ipaddress.ip_network(NETWORK).prefixlen
    run([*inside, "addr", "replace", f"{spec.address}/{prefix}", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "route", "replace", "default", "via", BRIDGE_ADDRESS])
    in_netns(spec, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    run(["ip", "route", "replace", spec.pod_subnet, "via", spec.address])


def remove_node_network(spec: NodeSpec) -> None:
    """Undo `make_node_network`; what is gone already is fine."""
    if Path(f"/sys/class/net/{spec.veth}").exists():
        run(["ip", "link", "del", spec.veth])
    run(["ip", "route", "del", spec.pod_subnet], check=False)
    if netns_file(spec).exists():
        run(["ip", "netns", "del", spec.netns])


def in_netns(spec: NodeSpec, *command: str, check: bool = True, timeout_seconds: float = 60) -> str:
    """Run a host command in the node's network namespace; return its standard output."""
    words = ["nsenter", f"--net={netns_file(spec)}", *command]
    return run(words, check=check, timeout_seconds=timeout_seconds).stdout


def set_link(spec: NodeSpec, *, up: bool) -> None:
    """Plug or pull the node's cable."""
    run(["ip", "link", "set", spec.veth, "up" if up else "down"])


def is_link_up(spec: NodeSpec) -> bool:
    """Whether the cable is plugged."""
    flags = Path(f"/sys/class/net/{spec.veth}/flags")
    return flags.exists() and bool(int(flags.read_text(), 16) & 1)


def limit_bandwidth(spec: NodeSpec, *, megabits_per_second: float | None) -> None:
    """Limit what flows towards the node (token bucket); None lifts the limit."""
    if megabits_per_second is None:
        run(["tc", "qdisc", "del", "dev", spec.veth, "root"], check=False)
        return
    kilobits = max(8, round(megabits_per_second * 1000))
    run(
        ["tc", "qdisc", "replace", "dev", spec.veth, "root", "tbf",
         "rate", f"{kilobits}kbit", "burst", "64kb", "latency", "400ms"]
    )  # fmt: skip


def _is_netns(path: Path) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text()
    return any(line.split()[4] in {str(path), f"/var{path}"} for line in mounts.splitlines())
