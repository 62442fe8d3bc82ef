# SPDX-License-Identifier: Apache-2.0
"""The store agent's metrics in Prometheus' text format."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slmwire.metrics import LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NODE, LABEL_REVISION

Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one agent has done since it started."""

    sent_bytes: int = 0
    connections: int = 0
    refused: int = 0
    collections: int = 0
    collection_errors: int = 0
    collected_bytes: int = 0


_GAUGES: Final = (
    ("slmstore_bytes", "bytes", "Bytes of blobs and partials in the store."),
    ("slmstore_free_bytes", "freeBytes", "Bytes free on the store's file system."),
    ("slmstore_file_system_bytes", "fileSystemBytes", "Size of the store's file system in bytes."),
    ("slmstore_reclaimable_bytes", "reclaimableBytes", "Bytes in the store that no pin needs."),
    ("slmstore_blobs", "blobs", "Verified files in the store."),
)


def render_metrics(
    observed: Mapping[str, Any], progress: Sequence[Mapping[str, Any]], counts: Counts, *, node: str
) -> str:
    """Text for a scrape. `observed` as by inventory.observe_store, `progress` as fetches write it."""
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            pairs = ",".join(f'{k}="{_escape(v)}"' for k, v in {LABEL_NODE: node, **labels}.items())
            lines.append(f"{name}{{{pairs}}} {value:g}" if value % 1 else f"{name}{{{pairs}}} {int(value)}")

    for name, key, text in _GAUGES:
        add(name, "gauge", text, [({}, observed[key])])
    partials = observed["partials"]
    add("slmstore_partials", "gauge", "Files begun and not finished.", [({}, len(partials))])
    add(
        "slmstore_partial_bytes",
        "gauge",
        "Bytes of files begun and not finished.",
        [({}, sum(row["bytes"] for row in partials))],
    )
    add(
        "slmstore_pin_bytes",
        "gauge",
        "Bytes of a pinned revision; complete says whether all of it is in the store.",
        [
            (_labels(pin) | {"complete": str(pin["complete"]).lower()}, pin["bytes"])
            for pin in observed["pins"]
        ],
    )
    add(
        "slmstore_quarantined",
        "gauge",
        "Files that failed verification and are not in the store.",
        [({}, len(observed["quarantined"]))],
    )
    add("slmstore_problems", "gauge", "Unreadable pins.", [({}, len(observed["problems"]))])
    for name, key, text in (
        ("slmstore_fetch_bytes", "bytes", "Bytes that were missing and are here, of a fetch under way."),
        ("slmstore_fetch_total_bytes", "total", "Bytes that were missing when a fetch under way began."),
    ):
        add(name, "gauge", text, [(_labels(row), _number(row.get(key))) for row in progress])
    for name, value, text in (
        ("slmstore_agent_sent_bytes_total", counts.sent_bytes, "Bytes of files given to other nodes."),
        ("slmstore_agent_refused_total", counts.refused, "Connections refused because there were too many."),
        ("slmstore_collections_total", counts.collections, "Collections of orphans."),
        ("slmstore_collection_errors_total", counts.collection_errors, "Collections that failed."),
        ("slmstore_collected_bytes_total", counts.collected_bytes, "Bytes of orphans removed."),
    ):
        add(name, "counter", text, [({}, value)])
    add("slmstore_agent_connections", "gauge", "Connections open now.", [({}, counts.connections)])
    return "\n".join(lines) + "\n"


def _labels(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        LABEL_NAMESPACE: str(row.get("namespace", "")),
        LABEL_DEPLOYMENT: str(row.get("deployment", "")),
        LABEL_REVISION: str(row.get("revision", "")),
    }


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and 0 <= value < float("inf") else 0


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
