"""A draft model that is cut out of its target: some of the target's decoder layers, in float32, of any architecture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def cut_config(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """Returns the target's configuration with only these of its layers."""
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = len(layers)
    if types := getattr(config.get_text_config(), "layer_types", None):
        text.layer_types = [types[layer] for layer in layers]
    return cut


def cut_decoder(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """Returns a decoder of float32 copies of these layers and of the final norm.

    The embeddings are not copied: the decoder is given states.
    """
    with torch.device("meta"):
        cut = AutoModelForCausalLM.from_config(cut_config(model.config, layers))
    decoder, source = cut.get_decoder(), model.get_decoder()
    decoder.rotary_emb = source.rotary_emb
    decoder.embed_tokens = torch.nn.Identity()
    pairs = [
        (decoder.norm, source.norm),
        *((decoder.layers[n], source.layers[layer]) for n, layer in enumerate(layers)),
    ]
    for made, origin in pairs:
        # `assign` keeps no tensor on the meta device; what is not in the state dictionary is the original's own.
        made.load_state_dict({name: value.detach().float() for name, value in origin.state_dict().items()}, assign=True)
        for parameter in made.parameters():
            parameter.requires_grad_(True)
    decoder.train(False)
    return decoder


def run_decoder(decoder: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Returns the normed last states [batch, length, hidden]; products are in bfloat16, the residual in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        output: Any = decoder(inputs_embeds=states.float(), use_cache=False)
    normed: torch.Tensor = output.last_hidden_state
    return normed


class LayerRun:
    """Runs one layer of a decoder at a time and sees what enters its last projection."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        self._decoder = decoder
        self._layers = decoder.layers

    @torch.no_grad()
    def run(self, index: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the layer's output [batch, length, hidden] and what enters its `down_proj` [batch, length, width]."""
        layer, seen = self._layers[index], {}

        def keep_input(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            seen["activation"] = inputs[0]

        def keep_output(_module: object, _inputs: object, output: Any) -> None:  # noqa: ANN401 (a tensor or a tuple)
            seen["output"] = output[0] if isinstance(output, tuple) else output

        handles = [
            layer.mlp.down_proj.register_forward_pre_hook(keep_input),
            layer.register_forward_hook(keep_output),
        ]
        self._decoder.layers = torch.nn.ModuleList([layer])
        try:
            run_decoder(self._decoder, states)
        finally:
            self._decoder.layers = self._layers
            for handle in handles:
                handle.remove()
        return seen["output"].float(), seen["activation"].float()


@torch.no_grad()
def fit_layers(
    decoder: PreTrainedModel, batches: list[tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]], ridge: float
) -> None:
    """Refits each layer's `down_proj` in closed form, first to last; layers without one keep theirs.

    A cut leaves each layer with an input for the next one that no layer ever made. The best correction of a down
    projection (its input is given, its output is the residual stream) is a least-squares problem: bring the stream to
    what the target has where the next kept layer starts.

    Args:
        batches: inputs [batch, length, hidden], for each layer the target's states that it should end at, and a mask
            [batch, length] of the positions that count.
        ridge: relative to the mean energy of the activations.
    """
    run = LayerRun(decoder)
    inputs = [states.float() for states, _, _ in batches]
    for index, layer in enumerate(decoder.layers):
        if not hasattr(getattr(layer, "mlp", None), "down_proj"):
            return
        weight = layer.mlp.down_proj.weight
        gram, cross = torch.zeros(weight.shape[1], weight.shape[1]), torch.zeros(weight.shape[1], len(weight))
        ends = []
        for number, (_, goals, mask) in enumerate(batches):
            output, activation = run.run(index, inputs[number])
            ends.append((output, activation))
            goal = goals[index][mask].float()
            # Relative errors: a few positions have states a hundred times larger than all others.
            scale = goal.pow(2).mean(-1, keepdim=True).rsqrt()
            weighted = activation[mask] * scale
            gram += weighted.T @ weighted
            cross += weighted.T @ ((goal - output[mask]) * scale)
        strength = ridge * gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + strength * torch.eye(len(gram)))
        change = torch.cholesky_solve(cross, factor)
        weight += change.T
        inputs = [output + activation @ change for output, activation in ends]
