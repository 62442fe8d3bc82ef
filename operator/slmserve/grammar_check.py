# SPDX-License-Identifier: Apache-2.0
"""Child process that tries to compile a grammar: a few patterns can keep the compiler busy for minutes.

The compiler cannot be interrupted from inside its process, and its own limits do not hold for
intersections of regular expressions. `python -m slmserve.grammar_check` reads the grammar from standard
input and writes what is wrong with it, nothing when it is well. Its argument is the CPU time that it may
take, in seconds.
"""

import os
import resource
import sys
from typing import Final

from slmserve.sandbox import forbid_dumps

_MEMORY_BYTES: Final = 2 << 30


def main() -> int:
    """Returns 0 also for a grammar that is wrong; a killed process says that it is too complex."""
    cpu_seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    forbid_dumps()
    os.nice(5)
    from slmserve.constraints import build_limits, find_fault

    sys.stdout.write(find_fault(sys.stdin.read(), build_limits()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
