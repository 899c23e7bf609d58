"""A head in training: what it reads, its loss over a few drafts in a row, and its acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.drafter.config import HeadConfig, TrainingConfig
from scripts.drafter.data.corpus import Batch, Corpus, Example, group, make_batch
from scripts.drafter.head.network import Head, HeadShape
from scripts.drafter.head.start import copy_layers, fit_first_layer
from scripts.drafter.training.drafter import TargetParts
from scripts.drafter.training.losses import REPORTED, distillation_loss, relative_error, target_probabilities


class HeadDrafter:
    """Implements `TrainedDrafter` for a head."""

    def __init__(self, target: TargetParts, config: HeadConfig, training: TrainingConfig) -> None:
        self.target, self.config, self.training = target, config, training
        self.head = Head(shape_of(target, config))

    @property
    def layers(self) -> list[int]:
        """The features' layers and the last one."""
        return sorted({*self.head.shape.features, self.target.num_layers})

    @property
    def start_layers(self) -> list[int]:
        """The target's layers that the head's layers start from."""
        last = self.target.num_layers
        return list(range(max(0, last - self.config.num_layers), last))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The head's parameters."""
        return dict(self.head.named_parameters())

    def start(self, corpus: Corpus, seed: int) -> None:
        """Gives the head its closed-form start."""
        torch.manual_seed(seed)
        tensors = self.target.model.state_dict()
        norm = self.target.model.get_decoder().norm.weight
        copy_layers(self.head, tensors, self.start_layers, norm.detach())
        goal = self.start_layers[0]
        batches, num_tokens = [], 0
        for examples in group(corpus.examples(), self.training.tokens_per_batch, f"{seed} fit"):
            batches.append(make_batch(examples, {*self.layers, goal}, self.training.question_weight))
            num_tokens += batches[-1].num_tokens
            if num_tokens >= self.config.fit_tokens:
                break
        fit_first_layer(self.head, batches, goal, self.config, self.target.embed, self.join)

    def join(self, batch: Batch) -> torch.Tensor:
        """The features of a batch, [batch, length, features * hidden]."""
        return torch.cat([batch.layers[layer] for layer in self.head.shape.features], -1)

    def outputs(self, batch: Batch, num_steps: int) -> list[torch.Tensor]:
        """The head's normed outputs; element [:, i] of step s is of position i + s."""
        return self.head.unrolled(self.target.embed(batch.tokens[:, 1:]), self.join(batch)[:, :-1], num_steps)

    def loss_of(self, examples: Sequence[Example], used: float) -> tuple[torch.Tensor, list[float], int]:
        """The loss of every rolled-out draft, each with its weight; at the beginning of the first draft alone."""
        steps = 1 if used < self.config.single_share else self.config.steps
        batch = make_batch(examples, self.layers, self.training.question_weight)
        # Position i predicts what the target predicts one position later.
        weights = batch.weights[:, 1:]
        chosen = weights > 0
        rows = self.target.draft_rows
        last = self.target.final(batch)[:, 1:][chosen]
        goal = target_probabilities(last, rows, self.training.label_temperature)
        place = torch.full(chosen.shape, -1)
        place[chosen] = torch.arange(int(chosen.sum()))
        total, parts = torch.zeros(()), []
        for step, output in enumerate(self.outputs(batch, steps)):
            mask, index = chosen[:, step:], place[:, step:][chosen[:, step:]]
            share = weights[:, step:][mask] / weights[chosen].sum()
            wanted = goal[index]
            loss = distillation_loss(
                output[mask], wanted, wanted[:REPORTED].argmax(-1), share, rows, self.training.label_temperature
            )
            near = self.training.hidden_weight * relative_error(output[mask], last[index], share)
            total = total + (loss + near) * self.config.step_weights[step]
            parts.append(float(loss.detach()))
        return total, parts + [0.0] * (self.config.steps - steps), batch.num_tokens

    @torch.no_grad()
    def acceptance(self, examples: Sequence[Example], max_k: int) -> list[torch.Tensor]:
        """Implements `TrainedDrafter`."""
        batch = make_batch(examples, self.layers, 1.0)
        outputs, last = self.outputs(batch, max_k), self.target.final(batch)
        found = []
        for row, example in enumerate(examples):
            # The token at j is drafted at position j - 2, which is column j - 2 - step.
            columns = torch.arange(example.answer_start, len(example.tokens)) - 2
            by_step = []
            for step, output in enumerate(outputs):
                place = columns - step
                accepted = self.target.accepted(output[row, place.clamp(min=0)], example, last[row])
                by_step.append(torch.where(place >= 0, accepted, 0.0))
            found.append(torch.stack(by_step))
        return found


def shape_of(target: TargetParts, config: HeadConfig) -> HeadShape:
    """The shape of a head for a target: the target's sizes, and a key-value head for every query head."""
    settings = target.config
    head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    return HeadShape(
        hidden=settings.hidden_size,
        target_hidden=settings.hidden_size,
        intermediate=settings.intermediate_size,
        num_heads=settings.num_attention_heads,
        num_kv_heads=settings.num_attention_heads,
        head_dim=head_dim,
        num_layers=config.num_layers,
        features=config.feature_layers(settings.num_hidden_layers),
        rope_theta=rope_theta(settings),
        eps=settings.rms_norm_eps,
    )


def rope_theta(settings: object) -> float:
    """The base of a target's rotary frequencies; 10000 if it names none."""
    parameters = getattr(settings, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(settings, "rope_theta", None) or 10000.0)
