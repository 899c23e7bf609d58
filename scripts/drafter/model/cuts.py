"""Which of a target's layers a small draft model is made of, and what its trained layers start from."""

from __future__ import annotations

import torch

from scripts.drafter.model.objective import ModelDrafter


def cut_of(num_layers: int, kept_share: float, target_layers: int) -> tuple[int, list[int]]:
    """The number of the target's first layers that are kept, and those that the trained ones start from.

    The trained layers start evenly spread over the rest of the target: each stands for the layers up to the next.
    """
    kept = int(num_layers * kept_share)
    num_trained, rest = num_layers - kept, target_layers - kept
    return kept, [kept + round(number * rest / num_trained) for number in range(num_trained)]


@torch.no_grad()
def take_layers(drafter: ModelDrafter, source: ModelDrafter) -> None:
    """Replaces the layers that a drafter starts from by trained ones of a larger drafter of the same target.

    Each layer takes the source's layer that started from the same layer of the target, or from the last one before
    it; where the source has none, because it keeps the target's own layers there, so does the drafter.
    """
    for layer, start in zip(drafter.decoder.layers, drafter.trained, strict=True):
        before = [number for number, origin in enumerate(source.trained) if origin <= start]
        if before:
            layer.load_state_dict(source.decoder.layers[before[-1]].state_dict())
    drafter.decoder.norm.load_state_dict(source.decoder.norm.state_dict())
