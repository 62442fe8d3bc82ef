# SPDX-License-Identifier: Apache-2.0
"""Lines of the serving benchmark's result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: `ratio` is ours/peer for rates and peer/ours for times."""

    measure: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    target: float | None
    load: str

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        return None if self.target is None else self.ratio >= self.target

    def to_json(self) -> dict[str, Any]:
        """The form that docs/benchmarks keeps."""
        names = ("measure", "unit", "ours", "peer", "peer_name", "ratio", "target")
        return {name: getattr(self, name) for name in names} | {"met": self.met, "load": self.load}


def rate_row(measure: str, ours: float, peer: float, peer_name: str, target: float | None, load: str) -> Row:
    """Higher is better."""
    return Row(
        measure=measure,
        unit="tokens/s",
        ours=round(ours, 1),
        peer=round(peer, 1),
        peer_name=peer_name,
        ratio=round(ours / peer, 2),
        target=target,
        load=load,
    )


def cost_row(
    measure: str, unit: str, ours: float, peer: float, peer_name: str, target: float | None, load: str
) -> Row:
    """Lower is better: times and sizes."""
    return Row(
        measure=measure,
        unit=unit,
        ours=round(ours, 1),
        peer=round(peer, 1),
        peer_name=peer_name,
        ratio=round(peer / ours, 2),
        target=target,
        load=load,
    )


def show_rows(rows: Sequence[Row]) -> None:
    """Print rows of one load."""
    print(f"  {rows[0].load}")
    for row in rows:
        verdict = "" if row.met is None else ("  ok" if row.met else f"  BELOW {row.target}x")
        print(
            f"    {row.measure:<42} {row.ours:>9.1f} {row.unit:<8} {row.peer_name:<24} {row.peer:>9.1f}"
            f"  {row.ratio:>6.2f}x{verdict}",
            flush=True,
        )
