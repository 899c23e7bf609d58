"""The draft vocabulary: the ids that the target writes most often."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from scripts.drafter.data.answers import shard_paths
from scripts.drafter.store import DrafterError, load_tensors


def draft_vocabulary(answers: Path, size: int, vocab_size: int, special: Iterable[int]) -> torch.Tensor:
    """Returns the most frequent ids of the target's own tokens, int32, sorted; `special` ids are always in it.

    Raises:
        DrafterError: there are no answers.
    """
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for path in shard_paths(answers):
        tensors = load_tensors(path)
        # Tokens of given prompts count a little, to rank ids that no answer has.
        weights = torch.where(tensors["owned"].bool(), 1000, 1)
        counts.index_add_(0, tensors["tokens"].long(), weights)
    if not counts.any():
        raise DrafterError(f"{answers} holds no answers: run the stage `answers` first")
    for token in special:
        counts[token] = torch.iinfo(torch.long).max
    # Ties (ids never seen) go to the smaller id, which byte-pair merging made the more frequent one.
    order = torch.argsort(counts, descending=True, stable=True)[: min(size, vocab_size)]
    return order.sort().values.to(torch.int32)
