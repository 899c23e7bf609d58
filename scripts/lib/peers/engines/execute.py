"""`python -m scripts.lib.peers.engines.execute PROGRAM ARGUMENTS`: becomes another program.

Run through `child_command`, the program is killed when the benchmark ends, however that ends: the kernel keeps that
over `exec`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # it leads to this project's packages, and the program may be another Python
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell
