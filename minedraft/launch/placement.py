"""Two workers beside each other: the parts of one GPU, the cores that the other one needs, GPUs that nobody uses."""

from __future__ import annotations

from pathlib import Path

from minedraft.device import GPU_MEMORY_SHARE, Device, count_gpus, usable_cores
from minedraft.settings.service import Settings
from minedraft.types import DraftMethod, Role

# What a worker needs beside its weights, when a GPU is divided: KV cache, and what the driver takes. Without it, a
# small drafter beside a large target would get hardly more than its weights.
_BESIDE_WEIGHTS = 2_000_000_000  # bytes
_COMPILE_S = 30.0  # the time after which a worker itself takes a command for hung


def divide_memory(settings: Settings) -> Settings:
    """Return the settings with a share for each of two workers on one GPU, unless they were given.

    Args:
        settings: with target and draft filled in.
    """
    target, draft = settings.target_memory_share, settings.draft_memory_share
    if not settings.shares_gpu or settings.draft_method is DraftMethod.NGRAM:
        return settings
    if target is None and draft is None:
        sizes = [_num_bytes(folder) + _BESIDE_WEIGHTS for folder in (settings.target, settings.draft)]
        target, draft = (round(GPU_MEMORY_SHARE * size / sum(sizes), 4) for size in sizes)
    elif draft is None:
        draft = round(GPU_MEMORY_SHARE * (1.0 - (target or 0.0)), 4)
    elif target is None:
        target = round(GPU_MEMORY_SHARE * (1.0 - draft), 4)
    return settings.model_copy(update={"target_memory_share": target, "draft_memory_share": draft})


def _num_bytes(folder: Path | None) -> int:
    """Return the bytes of a model's weights as stored; both models are loaded in one dtype."""
    assert folder is not None, "the caller has filled it in"
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def cores_beside(settings: Settings, role: Role) -> tuple[int, ...]:
    """Return the cores for a worker on a GPU: those that the other worker does not compute on. One thread of it
    launches every kernel, and would wait for a core there, or take it from the other.

    Returns:
        Core numbers; empty for any core: the worker is not on a GPU, or the other one has no cores, or all.
    """
    own, other = settings.target_device, settings.draft_device
    if role is Role.DRAFTER:
        own, other = other, own
    if Device.parse(own).kind != "cuda" or len(settings.own_workers) < len(Role):
        return ()
    return tuple(sorted(set(usable_cores()).difference(_cores(other))))


def _cores(text: str) -> tuple[int, ...]:
    device = Device.parse(text)
    return device.cores or (usable_cores() if device.kind == "cpu" else ())


def tell_unused_gpus(settings: Settings) -> str | None:
    """Return a line about GPUs that default devices leave unused; None if there are none, or devices were chosen.

    They are not chosen by default: which of them are free, and whether both models fit, is the operator's to say.
    """
    chosen = settings.model_fields_set & {"target_device", "draft_device"}
    if chosen or not settings.own_workers or not (num_gpus := count_gpus()):
        return None
    flags = f"--target-device cuda:0 --draft-device cuda:{min(1, num_gpus - 1)}"
    has = "has a GPU" if num_gpus == 1 else f"has {num_gpus} GPUs"
    return f"this machine {has}, and the default devices are CPU cores; to use the GPU (not tested yet): {flags}"


def find_hang_timeout_s(settings: Settings, name: str) -> float:
    """Return the seconds without progress after which a process is killed; 0: never. On a GPU kernels are also compiled
    when they are first used, in one call of a library."""
    devices = {Role.VERIFIER.value: settings.target_device, Role.DRAFTER.value: settings.draft_device}
    is_on_gpu = name in devices and Device.parse(devices[name]).kind == "cuda"
    if not is_on_gpu or not settings.hang_timeout_s:
        return settings.hang_timeout_s
    return max(settings.hang_timeout_s, _COMPILE_S)
