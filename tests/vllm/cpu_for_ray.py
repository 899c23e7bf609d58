"""vLLM's platform for CPUs, with a name for Ray: see `over_ray`."""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpuPlatformForRay(CpuPlatform):  # type: ignore[misc]
    """A core is what Ray calls a GPU."""

    ray_device_key = "GPU"


def platform() -> str:
    """The entry point `vllm.platform_plugins`: the name of the class."""
    return f"{__name__}.{CpuPlatformForRay.__qualname__}"
