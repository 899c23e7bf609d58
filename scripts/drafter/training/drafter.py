"""What training and evaluation need of a drafter, and the parts of the target that every drafter uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from scripts.drafter.data.corpus import Batch, Example
from scripts.drafter.evaluating.acceptance import acceptance_probability


class TrainedDrafter(Protocol):
    """A drafter of either kind."""

    @property
    def layers(self) -> list[int]:
        """The target's layers whose states it reads, the last one included."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name."""

    def loss_of(self, examples: Sequence[Example], used: float) -> tuple[torch.Tensor, list[float], int]:
        """The loss at a share of the budget, its parts, and the number of tokens that count."""

    def acceptance(self, examples: Sequence[Example], max_k: int) -> list[torch.Tensor]:
        """For each example, the probability [max_k, answer] that an answer's token is accepted as the k-th draft."""


class TargetParts:
    """The target's embeddings, output rows and final norm, and the draft vocabulary."""

    def __init__(self, model: PreTrainedModel, draft_ids: torch.Tensor) -> None:
        self.model, self.draft_ids = model, draft_ids
        self.config = model.config.get_text_config()
        self.num_layers: int = self.config.num_hidden_layers
        output = model.get_output_embeddings()
        assert output is not None, "a causal language model has output rows"
        self.output_rows: torch.Tensor = output.weight.detach()
        self.draft_rows = self.output_rows[draft_ids].clone()
        self.to_draft = torch.full((len(self.output_rows),), -1)
        self.to_draft[draft_ids] = torch.arange(len(draft_ids))

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of token ids, bfloat16."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    @torch.no_grad()
    def final(self, batch: Batch) -> torch.Tensor:
        """Returns the last states of a batch after the final norm, bfloat16."""
        normed: torch.Tensor = self.model.get_decoder().norm(batch.layers[self.num_layers])
        return normed

    def accepted(self, drafted: torch.Tensor, example: Example, last: torch.Tensor) -> torch.Tensor:
        """Returns for each answer token the probability that it came out as an accepted draft.

        Args:
            drafted: the drafter's normed states in front of each answer token, [answer, hidden].
            last: the target's normed states of the sequence, [length, hidden].
        """
        return acceptance_probability(
            drafted,
            last[example.answer_start - 1 : len(example.tokens) - 1],
            example.tokens[example.answer_start :],
            self.draft_rows,
            self.output_rows,
            self.to_draft,
            example.temperature,
        )
