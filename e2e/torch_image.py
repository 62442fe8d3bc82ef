# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.torch_image`: builds the optimizer's image with torch, and converts models in it.

The project's own model goes from its export to LiteRT, and from a Hugging Face checkpoint to ONNX in int4;
the server's own evaluation then says whether both still answer the golden cases. It is no part of
`make test`: the image is a download of gigabytes.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2e.bench.quality import MODEL, evaluate
from e2e.rig.images import MIB, TORCH_RECIPE, Container, open_container
from slmopt.checkpoint import write_checkpoint
from slmopt.graph import OnnxExport

CONVERSIONS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "litert": ("export", {"convert": {"to": "litert", "type": "dynamic_wi8_afp32"}}),
    "onnx": ("checkpoint", {"convert": {"to": "onnx", "type": "int4"}}),
}
"""By name: the source's folder, and the step."""
_LEAST: Final = 0.95
"""Of the golden cases that have to be answered exactly."""
_CONVERT_SECONDS: Final = 900.0
MOUNT: Final = "/models"
"""The models' folder in the container."""


def _convert(container: Container, work: Path, name: str) -> Path:
    source, step = CONVERSIONS[name]
    (work / f"{name}.json").write_text(json.dumps({"steps": [step]}))
    container.run(
        *("python3", "-m", "slmopt", "run", "--recipe", f"{MOUNT}/{name}.json"),
        *(f"{MOUNT}/{source}", f"{MOUNT}/{name}"),
        volumes={work: MOUNT},
        timeout_seconds=_CONVERT_SECONDS,
    )
    return work / name


def main() -> int:
    """Print a line for each conversion; 1 when one of them lost too much."""
    good = True
    with (
        tempfile.TemporaryDirectory(prefix="slm-torch-") as folder,
        open_container(TORCH_RECIPE) as container,
    ):
        print(f"{TORCH_RECIPE.name}: {container.added_bytes / MIB:,.0f} MiB above its base", flush=True)
        work = Path(folder)
        shutil.copytree(MODEL, work / "export")
        (work / "checkpoint").mkdir()
        write_checkpoint(OnnxExport(MODEL), work / "checkpoint")
        for name in CONVERSIONS:
            report = evaluate(_convert(container, work, name), MODEL, work)
            exact = report.exact_match or 0.0
            good = good and exact >= _LEAST
            print(f"{name}: {exact:.1%} of {report.samples} golden cases", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
