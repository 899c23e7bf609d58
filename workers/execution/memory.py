"""The memory that a worker can use: the machine's, within the limits of its control groups, or its GPU's; and
the part of it that a KV cache gets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar

import torch

from minedraft.device import GPU_MEMORY_SHARE
from minedraft.errors import ConfigError, MemoryExhausted
from minedraft.messages import DraftCommand, VerifyCommand

logger = logging.getLogger("minedraft.worker")

_ActorT = TypeVar("_ActorT")
_CommandT = TypeVar("_CommandT", DraftCommand, VerifyCommand)
_ResultT = TypeVar("_ResultT")

# Of a control group, versions 1 and 2: its limit, its use, and the part of its use that the kernel can reclaim.
_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}
# On the CPU of the memory that is free once the weights are loaded, for the cache alone: two workers share that
# memory, and one may look before the other has loaded its weights.
_CPU_SHARE = 0.125
# Of what is free on the GPU now, where something else has taken memory.
_MAX_OF_FREE = 0.9


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The size that a KV cache may have.

    Attributes:
        num_blocks: blocks, if they were asked for; None for as many as fit.
        block_size: tokens per block.
        memory_share: part of a GPU's memory for weights and cache, so that it does not matter which of two workers
            looks first; or part of the CPU's free memory for the cache. None for the default.
        max_requests: requests that have KV at once; on a GPU the cache gets no more blocks than they can use.
            On a CPU a block takes memory only once it is used.
        max_model_len: tokens of the longest request; None if the model has no limit.
    """

    num_blocks: int | None = None
    block_size: int = 16
    memory_share: float | None = None
    max_requests: int | None = None
    max_model_len: int | None = None

    def choose_blocks(self, bytes_per_block: int, device: torch.device) -> int:
        """Return the number of blocks. Call it when the weights are loaded.

        Raises:
            ConfigError: `num_blocks` is below 1, or the memory has no room for one block.
        """
        if self.num_blocks is not None:
            if self.num_blocks < 1:
                raise ConfigError("num_blocks", self.num_blocks, "must be 1 or more")
            return self.num_blocks
        if device.type == "cuda":
            return min(self._cuda_bytes(bytes_per_block, device) // bytes_per_block, self._max_usable())
        kv_bytes = int(available_memory() * (self.memory_share or _CPU_SHARE))
        if kv_bytes < bytes_per_block:
            needs = f"one block of {self.block_size} tokens needs {bytes_per_block} bytes"
            limit = f"{needs}, the memory has room for {kv_bytes}"
            raise ConfigError("num_blocks", None, limit)
        return kv_bytes // bytes_per_block

    def _max_usable(self) -> int:
        if self.max_requests is None or self.max_model_len is None:
            return 1 << 62
        return self.max_requests * -(-self.max_model_len // self.block_size)

    def _cuda_bytes(self, bytes_per_block: int, device: torch.device) -> int:
        torch.cuda.empty_cache()  # what loading has needed for a moment counts as free
        num_free, num_total = torch.cuda.mem_get_info(device)
        num_own = torch.cuda.memory_reserved(device)
        share = self.memory_share or GPU_MEMORY_SHARE
        kv_bytes = min(int(num_total * share) - num_own, int(num_free * _MAX_OF_FREE))
        if kv_bytes < bytes_per_block:
            limit = (
                f"the model takes {num_own / 1e9:.2f} of the GPU's {num_total / 1e9:.2f} GB, {num_free / 1e9:.2f} GB "
                f"are free: no room for a KV block of {bytes_per_block / 1e6:.2f} MB"
            )
            raise ConfigError("memory_share", share, limit)
        return kv_bytes


def within_memory(
    execute: Callable[[_ActorT, _CommandT], _ResultT],
) -> Callable[[_ActorT, _CommandT], _ResultT]:
    """Decorate an actor's method so that a device without memory for the command refuses it.

    The method then raises MemoryExhausted and names the longest request: without it the next try needs least. Its
    requests can go on from the tokens that they had before.
    """

    @wraps(execute)
    def execute_or_refuse(actor: _ActorT, command: _CommandT) -> _ResultT:
        try:
            return execute(actor, command)
        except torch.OutOfMemoryError as error:
            cause = first_sentence(error)
        # Only here, where no traceback holds the tensors of the command.
        torch.cuda.empty_cache()
        lengths = [(span.prefix_len + len(span.tokens), span.request_id) for span in command.spans]
        num_tokens = sum(len(span.tokens) for span in command.spans)
        refusal = MemoryExhausted(f"no memory for {num_tokens} tokens of {len(lengths)} requests: {cause}")
        refusal.request_id = max(lengths)[1] if lengths else None
        raise refusal

    return execute_or_refuse


def first_sentence(error: torch.OutOfMemoryError) -> str:
    """Return what torch says of the allocation, without its advice."""
    return " ".join(str(error).partition(" GPU ")[0].split()).rstrip(".")


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


def check_context(wanted: int | None, of_model: int, num_cached: int) -> None:
    """Raise ConfigError if a requested context exceeds the KV cache; log a warning if the model's own does.

    Args:
        wanted: tokens per sequence; None for the model's own limit, `of_model`.
        num_cached: tokens that the cache holds.
    """
    holds = f"the KV cache holds {num_cached} tokens"
    if wanted is not None and num_cached < wanted:
        raise ConfigError("max_model_len", wanted, holds)
    if wanted is None and num_cached < of_model:
        logger.warning("the context is %d tokens, less than the model's %d: %s", num_cached, of_model, holds)
