"""Puts a model that is built in memory into the product's executor. Only this module knows its inside."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import PretrainedConfig

from minedraft.device import Device
from minedraft_workers.execution import executor as product
from minedraft_workers.execution.attention import ATTENTION_NAME
from minedraft_workers.execution.loading import LoadedModel
from minedraft_workers.execution.options import LoadOptions
from scripts.gpu.controlled.model import build_model, make_config
from scripts.gpu.controlled.shapes import Shape

BLOCK_SIZE = 16


def make_executor(
    name: str,
    shape: Shape,
    successors: np.ndarray,
    device: Device,
    *,
    dtype: str,
    num_blocks: int,
    kernels: str = "auto",
) -> product.Executor:
    """Return the executor of a controlled model, made by `Executor.load`: with the kernels that it chooses, and its
    checks. Only the two functions that read a model folder are replaced for the time of the call.

    Args:
        name: of the model. shape: its sizes. successors: see `build_model`.
        dtype, num_blocks, kernels: as for `Executor.load`.

    Raises:
        ModelError, ConfigError: as `Executor.load`.
    """

    def load_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype, target: torch.device) -> LoadedModel:
        model = build_model(shape, successors, dtype, target, ATTENTION_NAME)
        num_bytes = sum(weight.nbytes for weight in model.parameters())
        # The embedding is not tied, and is read one row per token.
        read_bytes = num_bytes - model.get_input_embeddings().weight.nbytes
        return LoadedModel(model, num_bytes, read_bytes, read_bytes // dtype.itemsize, None)

    def read_config(folder: Path) -> PretrainedConfig:
        return make_config(shape)

    with mock.patch.multiple(product, read_config=read_config, load_model=load_model):
        return product.Executor.load(
            Path(name),
            LoadOptions(device, dtype=dtype, num_blocks=num_blocks, block_size=BLOCK_SIZE, kernels=kernels),
        )
