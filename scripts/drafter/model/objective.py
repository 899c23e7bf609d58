"""A draft model in training: what it reads, its loss and its acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.drafter.config import ModelConfig, TrainingConfig
from scripts.drafter.data.corpus import Batch, Corpus, Example, group, make_batch
from scripts.drafter.model.network import cut_decoder, fit_layers, run_decoder
from scripts.drafter.training.drafter import TargetParts
from scripts.drafter.training.losses import REPORTED, distillation_loss, relative_error, target_probabilities


class ModelDrafter:
    """Implements `TrainedDrafter` for a draft model: unchanged layers of the target, then trained ones.

    The unchanged layers are never trained, so their output is read from the teacher's states.
    """

    def __init__(
        self,
        target: TargetParts,
        config: ModelConfig,
        training: TrainingConfig,
        cut: tuple[int, list[int]] | None = None,
    ) -> None:
        self.target, self.config, self.training = target, config, training
        self.prefix, self.trained = cut or config.layers(target.num_layers)
        self.decoder = cut_decoder(target.model, self.trained)

    @property
    def layers(self) -> list[int]:
        """The last unchanged layer and the last layer."""
        return sorted({*([self.prefix] if self.prefix else []), self.target.num_layers})

    @property
    def ends(self) -> list[int]:
        """For each trained layer, the number of target layers whose work it stands for the end of."""
        return [*self.trained[1:], self.target.num_layers]

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the trained layers and of the final norm."""
        return dict(self.decoder.named_parameters())

    def start(self, corpus: Corpus, seed: int) -> None:
        """Gives the trained layers their closed-form start."""
        batches, num_tokens = [], 0
        known = corpus.examples_with({*self.layers, *self.ends})
        for examples in group(known, self.training.tokens_per_batch, f"{seed} fit"):
            batch = make_batch(examples, {*self.layers, *self.ends}, self.training.question_weight)
            batches.append((self.inputs(batch), [batch.layers[end] for end in self.ends], batch.weights > 0))
            num_tokens += batch.num_tokens
            if num_tokens >= self.config.fit_tokens:
                break
        fit_layers(self.decoder, batches, self.config.fit_ridge)

    def inputs(self, batch: Batch) -> torch.Tensor:
        """The states that enter the trained layers."""
        return batch.layers[self.prefix] if self.prefix else self.target.embed(batch.tokens)

    def loss_of(self, examples: Sequence[Example], used: float) -> tuple[torch.Tensor, list[float], int]:
        """The loss over the draft vocabulary, and the relative squared error of the last states with its weight."""
        settings = self.training
        batch = make_batch(examples, self.layers, settings.question_weight)
        chosen = batch.weights > 0
        share = batch.weights[chosen] / batch.weights[chosen].sum()
        states = run_decoder(self.decoder, self.inputs(batch))[chosen]
        last = self.target.final(batch)[chosen]
        rows = self.target.draft_rows
        goal = target_probabilities(last, rows, settings.label_temperature)
        loss = distillation_loss(
            states.to(torch.bfloat16), goal, goal[:REPORTED].argmax(-1), share, rows, settings.label_temperature
        )
        near = settings.hidden_weight * relative_error(states, last, share)
        return loss + near, [float(loss.detach())], batch.num_tokens

    @torch.no_grad()
    def acceptance(self, examples: Sequence[Example], max_k: int) -> list[torch.Tensor]:
        """Implements `TrainedDrafter`."""
        batch = make_batch(examples, self.layers, 1.0)
        states = run_decoder(self.decoder, self.inputs(batch)).to(torch.bfloat16)
        last = self.target.final(batch)
        found = []
        for row, example in enumerate(examples):
            part = slice(example.answer_start - 1, len(example.tokens) - 1)
            found.append(self.target.accepted(states[row, part], example, last[row]).expand(max_k, -1))
        return found
