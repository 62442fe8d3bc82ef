# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.checks [--write]`: one line for each check, non-zero when one fails."""

import argparse
import importlib
import pkgutil
import sys
import time

import e2e.checks
from e2e.checks.check import Check, CheckError
from e2e.checks.generated import write_generated
from e2e.rig import RigError


def all_checks() -> list[Check]:
    """The checks of every module of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(e2e.checks.__path__))
    modules = [importlib.import_module(f"e2e.checks.{name}") for name in names if name != "__main__"]
    return [check for module in modules for check in getattr(module, "CHECKS", ())]


def main() -> int:
    """Run all checks; exit status."""
    parser = argparse.ArgumentParser(prog="python -m e2e.checks")
    parser.add_argument("--write", action="store_true", help="write the generated files first")
    if parser.parse_args().write:
        for path in write_generated():
            print(f"wrote {path}")
    failed = 0
    for check in all_checks():
        started = time.monotonic()
        try:
            text, mark = check.run(), "ok"
        except (CheckError, RigError) as error:
            text, mark = str(error), "FAILED"
            failed += 1
        print(f"{mark:7}{check.name}: {text} ({time.monotonic() - started:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
