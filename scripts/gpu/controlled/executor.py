"""Puts a model that was built in memory into the product's executor. Only this module knows its inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from minedraft.device import Device
from minedraft_workers.device import torch_device
from minedraft_workers.execution.attention import ATTENTION_NAME
from minedraft_workers.execution.choice import choose_kernels, make_fused, make_torch
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.loading import LoadedModel
from scripts.gpu.controlled.model import build_model
from scripts.gpu.controlled.shapes import SHAPES

if TYPE_CHECKING:
    from minedraft_workers.execution.runner import Runner

BLOCK_SIZE = 16


def make_executor(
    shape: str, successors: np.ndarray, device: Device, *, dtype: str, num_blocks: int, kernels: str = "torch"
) -> Executor:
    """Return the executor of a controlled model.

    Args:
        shape: a name in SHAPES. successors: see `build_model`.
        kernels: "torch", or "auto" for native ones on a CPU that has them.

    Raises:
        ConfigError: the KV cache does not fit.
    """
    model = build_model(SHAPES[shape], successors, getattr(torch, dtype), torch_device(device), ATTENTION_NAME)
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    # The embedding is not tied, and is read one row per token.
    read_bytes = num_bytes - model.get_input_embeddings().weight.nbytes
    loaded = LoadedModel(model, num_bytes, read_bytes, read_bytes // model.dtype.itemsize, None)
    context: int = model.config.max_position_embeddings
    native, reason = choose_kernels(kernels, device)
    runner: Runner
    if native is not None:
        runner = make_fused(loaded, native, Path(shape), num_blocks, BLOCK_SIZE, context)
    else:
        runner, loaded = make_torch(loaded, device, Path(shape), num_blocks, BLOCK_SIZE)
    return Executor(runner, loaded, model.config, context, model_name=shape, device=device, kernels_reason=reason)
