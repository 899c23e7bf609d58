"""Loads a drafting head on the kernels that fit it here."""

from __future__ import annotations

from typing import Any

import torch

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft.models.heads.folder import HeadInfo
from minedraft_workers.device import torch_device
from minedraft_workers.execution.choice import AnyKernels, allocate_cache, choose_native, list_candidates, say_choice
from minedraft_workers.execution.eagle.decoder import HeadDecoder
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.eagle.weights import make_rotary, read_head_weights
from minedraft_workers.execution.loading import choose_dtype
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.kernels.base import NotFused, PagedCache
from minedraft_workers.kernels.native_kernels import NativeLayerKernels
from minedraft_workers.kernels.tables import LayerShape


def load_head(info: HeadInfo, options: LoadOptions) -> EagleHead:
    """Load a head that `check_head_folder` has checked, and make its KV cache.

    Where transformers' own code is asked for, a head, which has none, runs on torch's operators.

    Raises:
        ConfigError: an option cannot be used.
    """
    device, context = options.device, min(options.max_model_len or info.max_context, info.max_context)
    size = options.cache_size(context)
    chosen, number_format, reason = _choose(info, options.dtype, options.kernels, device, torch_device(device))
    weights = read_head_weights(info, number_format, torch_device(device))
    layers = _shapes(info)

    def make_cache() -> PagedCache[Any]:
        bytes_per_block = chosen.block_bytes(layers, size.block_size, number_format)
        count = size.choose_blocks(bytes_per_block, torch_device(device))
        return allocate_cache(
            lambda: chosen.make_cache(layers, count, size.block_size, number_format), count, bytes_per_block
        )

    rotary = make_rotary(info, torch_device(device))
    decoder: HeadDecoder[Any, Any, Any] = HeadDecoder(
        weights, rotary, chosen, make_cache, head_dim=info.config.head_dim, eps=info.config.eps
    )
    head = EagleHead(
        info,
        decoder,
        chosen,
        weights.draft_vocab_ids,
        max_model_len=context,
        device=device,
        weights_bytes=weights.num_bytes,
        kernels_reason=reason,
    )
    _use_graphs(head, decoder)
    return head


def _use_graphs(head: EagleHead, decoder: HeadDecoder[Any, Any, Any]) -> None:
    """Have a head on Triton's kernels run by graphs on a GPU."""
    if decoder.kernels != "triton" or head.device.type != "cuda":
        return
    from minedraft_workers.execution.eagle.graphs import HeadGraphs
    from minedraft_workers.execution.graphs.capture import CudaGraphs

    head.graphs = HeadGraphs(decoder, head.feature_size, head.max_model_len, CudaGraphs())


def foresee_head(info: HeadInfo, *, dtype: str, kernels: str, device: Device) -> str:
    """Return in one line what the head is and will run on.

    Raises:
        ConfigError: as `load_head`.
    """
    chosen, number_format, reason = _choose(info, dtype, kernels, device, torch.device("meta"))
    return f"{info}; {say_choice(chosen.name, chosen.is_batch_invariant, number_format, reason)}"


def _choose(
    info: HeadInfo, dtype: str, kernels: str, device: Device, target: torch.device
) -> tuple[AnyKernels, torch.dtype, str]:
    """Return the kernels, the number format and why these."""
    native: NativeLayerKernels | None
    native, reason = choose_native(kernels, device)
    number_format = choose_dtype(dtype, torch_device(device), native)
    if kernels == "transformers":
        kernels, reason = "torch", "transformers has no code of its own for a head"
    for candidate in list_candidates(kernels, native, device, target, number_format):
        try:
            candidate.check(_shapes(info), number_format)
        except NotFused as error:
            if kernels == candidate.name.split()[0]:
                raise ConfigError("kernels", kernels, f"do not fit this head: {error}") from error
            reason = f"{candidate.name} kernels do not fit this head: {error}"
            continue
        return candidate, number_format, reason
    raise AssertionError("torch's kernels fit every head")


def _shapes(info: HeadInfo) -> list[LayerShape]:
    config = info.config
    return [LayerShape(config.num_kv_heads, config.head_dim, config.head_dim)] * config.num_layers
