"""`python -m tests.vllm.group PARENT COMMAND ...`: runs a command, and kills it and all that it has started when
process PARENT ends, however that ends. It must lead a process group of its own.

The kernel tells only the first process of an end; vLLM's engine is a child of its server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from minedraft.process.parent import exit_with_parent


def group_command(*command: str) -> list[str]:
    """Return the command line of such a group, for this process as the parent."""
    return [sys.executable, "-m", "tests.vllm.group", str(os.getpid()), *command]


def _end_all(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_all)
    exit_with_parent(int(sys.argv[1]), signal.SIGTERM, _end_all)
    sys.exit(subprocess.run(sys.argv[2:], check=False).returncode)
