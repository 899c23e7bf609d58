"""Features: what the layers of a target hand on, for a drafter that drafts from them.

A layer's number is how many layers the residual stream has passed: 0 is the embedding, the number of layers is
the last one's output before the final norm. `AFTER_FINAL_NORM` is the output of that norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from minedraft.errors import ModelError

AFTER_FINAL_NORM = -1


@dataclass(frozen=True, slots=True, eq=False)
class ForwardOutput:
    """What a forward gives where features are wanted.

    logits: float32 [rows asked for, columns]. features: [new tokens, features a token], in the model's dtype; both
    on the device, in the order of the spans.
    """

    logits: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True, slots=True)
class FeatureLayers:
    """The layers whose outputs are wanted, each `hidden_size` columns of a row of features, in this order."""

    layers: tuple[int, ...] = ()
    hidden_size: int = 0

    @property
    def num_columns(self) -> int:
        return len(self.layers) * self.hidden_size

    def inside(self, num_layers: int) -> tuple[int, ...]:
        """Return the wanted layers between the first and the last of so many, in ascending order, each once."""
        return tuple(sorted({layer for layer in self.layers if 0 < layer < num_layers}))

    def empty(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Return memory for the features of so many rows, in the dtype and on the device of `like`."""
        return like.new_empty(num_rows, self.num_columns)

    def put(self, features: torch.Tensor, layer: int, stream: torch.Tensor) -> None:
        """Copy the output of a layer, [rows, hidden size], to each of its places in `features`; it has none if it
        is not wanted."""
        for index, wanted in enumerate(self.layers):
            if wanted == layer:
                features[:, index * self.hidden_size : (index + 1) * self.hidden_size] = stream


class FeatureRecorder:
    """Records the features of a model of transformers while it runs in its own code.

    Raises:
        ModelError: its layers cannot be found.
    """

    def __init__(self, model: PreTrainedModel, wanted: FeatureLayers) -> None:
        self._wanted = wanted
        self._like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._decoder: nn.Module = model.get_decoder()
        self._layers = _find_layers_of(self._decoder, model) if wanted.layers else nn.ModuleList()

    @contextmanager
    def recording(self, num_rows: int) -> Iterator[torch.Tensor]:
        """Inside the block, run the model once on so many rows: that fills the features, [rows, columns]."""
        features = self._wanted.empty(num_rows, self._like)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._wanted.put(features, 0, (args[0] if args else kwargs["hidden_states"])[0])

        def leave(number: int) -> Callable[[nn.Module, Any, Any], None]:
            def put(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401 - a hook
                stream = output if isinstance(output, torch.Tensor) else output[0]
                self._wanted.put(features, number, stream[0])

            return put

        hooks = []
        for number in set(self._wanted.layers):
            if number == 0:
                hooks.append(self._layers[0].register_forward_pre_hook(enter, with_kwargs=True))
            else:
                module = self._decoder if number == AFTER_FINAL_NORM else self._layers[number - 1]
                hooks.append(module.register_forward_hook(leave(number)))
        try:
            yield features
        finally:
            for hook in hooks:
                hook.remove()


def _find_layers_of(decoder: nn.Module, model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's layers: its one list of as many modules as the configuration says."""
    num_layers = model.config.get_text_config().num_hidden_layers
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == num_layers]
    if len(lists) != 1:
        limit = f"the {num_layers} layers of {type(decoder).__name__} cannot be found, which features are taken from"
        raise ModelError("model", model.config.model_type, limit)
    return lists[0]
