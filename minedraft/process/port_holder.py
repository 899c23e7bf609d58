"""Which process listens on a TCP port, as far as this user may know."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LISTENING = "0A"


def find_port_holder(port: int) -> int | None:
    """Return the id of a process that listens on the port; None if it belongs to another user, or has gone."""
    inodes = _listening_inodes(port)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            for link in (folder / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(link) in inodes:
                        return int(folder.name)
    return None


def _listening_inodes(port: int) -> set[str]:
    """Return the sockets that listen on the port, as links to descriptors name them."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
