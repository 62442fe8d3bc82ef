# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.bench.render`: docs/benchmarks/*.json -> docs/benchmarks.md."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"
_COLUMNS = ("measure", "unit", "ours", "peer", "peer_name", "ratio", "target", "met", "load")


def render_page(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown with one table per benchmark; `results` maps a name to its rows."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`: ours and the peer in one run on one machine, so compare within a row.",
        "A target that was missed says `no`.",
    ]
    for name, rows in sorted(results.items()):
        lines += ["", f"## {name}", "", "| " + " | ".join(_COLUMNS).replace("_", " ") + " |"]
        lines.append("|" + "---|" * len(_COLUMNS))
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def load_results() -> dict[str, list[dict[str, Any]]]:
    """All result files; ValueError when one is not a list of rows."""
    results = {}
    for path in sorted(RESULTS.glob("*.json")):
        rows = json.loads(path.read_text())
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path.name}: must be a list of rows")
        results[path.stem] = rows
    return results


def main() -> int:
    """Write the page."""
    PAGE.write_text(render_page(load_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
