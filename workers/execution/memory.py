"""The memory that a worker can use: the machine's, within the limits of its control groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Of a control group, versions 1 and 2: its limit, its use, and the part of its use that the kernel can reclaim.
_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process could still allocate (Linux).

    Args:
        root: where `proc` and `sys` are.
    """
    machine = re.search(r"^MemAvailable: +(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    assert machine is not None, "Linux has had MemAvailable since 3.14"
    return min([int(machine[1]) * 1024, *_rooms(root)])


def _rooms(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group above this process leaves it."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        controller = next((name for name in controllers.split(",") if name in _FILES), None)
        if controller is None:
            continue
        mount = root / "sys/fs/cgroup" / controller
        folder = mount / path.lstrip("/")
        # Inside a container the path may be the host's; then only the topmost folder exists, and is the group's.
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such folder, no limit ("max"), or none at the top
                yield _room(group, *_FILES[controller])
            if group == mount:
                break


def _room(group: Path, limit: str, use: str, reclaimable: str) -> int:
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / use).read_text()) - int(stat.get(reclaimable, 0))
    return max(int((group / limit).read_text()) - used, 0)
