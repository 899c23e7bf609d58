"""Builds a decoder with random weights on a device in about a second, whose greedy successor map is chosen.

The projections back into the residual stream are scaled down so far that it stays the token's embedding E[t]
through all layers, at the full cost of the architecture. After the last norm it is E[t] times
sqrt(hidden_size) / |E[t]|, and row f(t) of the output layer is E[t] / |E[t]|: the logit of f(t) is
sqrt(hidden_size), those of the others are standard normal. For 4096 that is 64 against about 5, in any dtype
and with any kernel.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.gpu.controlled.shapes import Shape

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_RESIDUAL_SCALE = 1e-3
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")
_SEED = 3


def make_config(shape: Shape) -> PretrainedConfig:
    """Return transformers' configuration of a shape, without special tokens: no answer ends early."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields: dict[str, Any] = asdict(shape)
    kind = fields.pop("kind")
    no_specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config: PretrainedConfig = CONFIG_MAPPING[kind](**fields, **no_specials, tie_word_embeddings=False)
    return config


def build_model(
    shape: Shape, successors: np.ndarray, dtype: torch.dtype, device: torch.device, attention: str
) -> PreTrainedModel:
    """Return the model that continues each token t with `successors[t]`.

    Args:
        successors: int64 [shape.vocab_size], a permutation.
        attention: the name of an attention implementation of transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(make_config(shape), dtype=dtype, attn_implementation=attention)
    model = model.eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(_SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = 1.0 if "embed" in name else weight.shape[1] ** -0.5
                std *= _RESIDUAL_SCALE if name.endswith(_INTO_RESIDUAL) else 1.0
                weight.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
        embedding = model.get_input_embeddings().weight
        rows = torch.from_numpy(successors).to(device)
        output = model.get_output_embeddings().weight
        # In parts: in float32 a large vocabulary would take twice the layer's memory once more.
        for part, ids in zip(torch.split(embedding, 1 << 14), torch.split(rows, 1 << 14), strict=True):
            output[ids] = torch.nn.functional.normalize(part.float(), dim=1).to(dtype)
    built: PreTrainedModel = model
    return built
