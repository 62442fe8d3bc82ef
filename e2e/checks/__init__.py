# SPDX-License-Identifier: Apache-2.0
"""Checks of what is neither code nor test: generated files, the chart, the scenario map.

`python -m e2e.checks` runs all of them, `--write` brings the generated files up to date first. A module
of this package takes part by having a tuple `CHECKS`.
"""

from e2e.checks.check import Check, CheckError

__all__ = ["Check", "CheckError"]
