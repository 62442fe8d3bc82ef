# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.sbom`: writes build/sbom/IMAGE.cdx.json for the operator and the runtime.

SOURCE_DATE_EPOCH, in seconds, is the time in them; the present one otherwise.
"""

import os
import sys
import time
import tomllib
from datetime import UTC, datetime
from typing import Final

from e2e.rig.paths import CHECKOUT
from e2e.sbom.bom import Image, installed_licenses, render_bom
from e2e.sbom.lock import read_lock

IMAGES: Final = {"slmops-operator": "operator", "slmops-runtime": "runtime"}
"""The extra, and with it the lock, of each image."""


def main() -> int:
    """Write them all; exit status."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    at = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    folder = CHECKOUT / "build" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for name, extra in IMAGES.items():
        packages = read_lock((CHECKOUT / "locks" / f"{extra}.txt").read_text())
        image = Image(name=name, version=version, packages=packages)
        path = folder / f"{name}.cdx.json"
        path.write_text(render_bom(image, at=at, licenses=installed_licenses))
        licensed = sum(bool(installed_licenses(package)) for package in packages)
        print(f"{path.relative_to(CHECKOUT)}: {len(packages)} packages, {licensed} with a license")
    return 0


if __name__ == "__main__":
    sys.exit(main())
