"""Which devices the workers of a check run on."""

from __future__ import annotations

from minedraft.device import Device, usable_cores

_MAX_CORES = 8


def draft_cores() -> str:
    """Return the cores of a drafter beside an accelerator: up to eight."""
    return str(Device("cpu", usable_cores()[:_MAX_CORES]))


def two_cores() -> tuple[str, str]:
    """Return a core for the target and one for the draft model; the same one if there is only one."""
    cores = usable_cores()
    return f"cpu:{cores[-1]}", f"cpu:{cores[0]}"
