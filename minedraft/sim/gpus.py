"""What named devices can do, from their maker's data sheets, and what of it programs get.

Source: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, L40S, L40, L4, A10G (as A10), and of B200 in HGX; the
whitepapers of Ada and Blackwell for the RTX cards. Operations are dense bfloat16 with float32 accumulation, which the
sheets give for twice as many with sparsity. Latencies of an all-reduce are what NCCL takes for small messages over
NVLink or PCIe. The two shares are what large matrix products and reads of weights commonly reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device.

    Attributes:
        flops: per second, dense bfloat16 with float32 accumulation.
        bytes_per_s: of its memory. memory_bytes: that it has.
        link_s, link_bytes_per_s: latency and bandwidth of an all-reduce between two of them in one host.
    """

    name: str
    flops: float
    bytes_per_s: float
    memory_bytes: float
    link_s: float = 8e-6
    link_bytes_per_s: float = 300e9


COMPUTE_SHARE = 0.6
"""Share of a data sheet's operations that large matrix products reach."""
MEMORY_SHARE = 0.8
"""Share of a data sheet's bandwidth that reading weights reaches."""

_GB, _TERA = 1e9, 1e12
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312 * _TERA, 2039 * _GB, 80 * _GB),
        Gpu("h100", 989 * _TERA, 3350 * _GB, 80 * _GB),
        Gpu("h200", 989 * _TERA, 4800 * _GB, 141 * _GB),
        Gpu("b200", 2250 * _TERA, 8000 * _GB, 192 * _GB, link_bytes_per_s=900 * _GB),
        Gpu("l40s", 362 * _TERA, 864 * _GB, 48 * _GB, link_s=15e-6, link_bytes_per_s=32 * _GB),
        Gpu("l40", 181 * _TERA, 864 * _GB, 48 * _GB, link_s=15e-6, link_bytes_per_s=32 * _GB),
        Gpu("l4", 121 * _TERA, 300 * _GB, 24 * _GB, link_s=15e-6, link_bytes_per_s=32 * _GB),
        Gpu("a10g", 70 * _TERA, 600 * _GB, 24 * _GB, link_s=15e-6, link_bytes_per_s=32 * _GB),
        Gpu("rtx4090", 165 * _TERA, 1008 * _GB, 24 * _GB, link_s=15e-6, link_bytes_per_s=32 * _GB),
        Gpu("rtx5090", 209 * _TERA, 1792 * _GB, 32 * _GB, link_s=15e-6, link_bytes_per_s=64 * _GB),
    )
}


def find_gpu(field: str, name: str) -> Gpu:
    """Return the device of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in GPUS:
        raise ConfigError(field, name, f"must be one of {', '.join(GPUS)}")
    return GPUS[name]
