"""Which servers have room in this machine's memory at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from scripts.lib.vllm.ways import KV_GIB, ServerPlan, Way

_PROCESSES = 3_200_000_000  # bytes of the processes of a server, without weights and KV, as measured
_SPARE = 1_500_000_000  # bytes left to everything else


def own_bytes(plan: ServerPlan, ways: Sequence[Way]) -> dict[Way, int]:
    """Return about how many bytes the server of each way takes."""
    target, draft = weight_bytes(plan.target, plan.dtype), weight_bytes(plan.draft, plan.dtype)
    fixed = _PROCESSES + KV_GIB * 2**30
    return {way: fixed + target + (draft if way is Way.OWN else 0) for way in ways}


def weight_bytes(model: Path, dtype: str) -> int:
    """Return the bytes of a model's weights, which are stored in bfloat16."""
    stored = sum([path.stat().st_size for path in model.glob("*.safetensors")])
    return stored * (2 if dtype == "float32" else 1)


def free_bytes(plan: ServerPlan) -> int:
    """Return how many bytes there are for servers beside the drafter."""
    return int(psutil.virtual_memory().available) - weight_bytes(plan.draft, plan.dtype) - _SPARE


def together(ways: Sequence[Way], sizes: Mapping[Way, int], free: int) -> list[list[Way]]:
    """Return all ways in sets that run at the same time, one set after the other. The first has both ways with the
    plugin, whatever their size: they are measured against each other.

    Args:
        sizes: bytes of each way's server. free: bytes that there are for those of a set.
    """
    with_plugin = [way for way in ways if way.groups]
    sets = [with_plugin] if with_plugin else []
    for way in ways:
        if way not in with_plugin:
            fitting = [each for each in sets if sum([sizes[one] for one in (*each, way)]) <= free]
            if fitting:
                fitting[0].insert(0, way)
            else:
                sets.append([way])
    return sets
