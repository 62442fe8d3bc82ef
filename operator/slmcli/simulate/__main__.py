# SPDX-License-Identifier: Apache-2.0
"""`python -m slmcli.simulate -f FILE`: the same as `kubectl slm simulate`."""

import argparse
import sys

from slmcli.simulate.command import add_arguments, run


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="kubectl slm simulate")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
