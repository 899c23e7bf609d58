"""The span of a forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardSpan:
    """The span of a forward: keep `prefix_len` cached tokens, append `tokens` (one or more).

    num_logits: number of last positions of `tokens` to compute logits for (0 = only cache the tokens).
    """

    request_id: int
    prefix_len: int
    tokens: Sequence[int]
    num_logits: int
