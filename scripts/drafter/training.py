"""Stage `training`: distils the target into the student, from recorded states only (the target is not run again).

Soft labels: the target's distribution over the draft vocabulary is rebuilt from its last hidden state and the frozen
output rows, and the student's is brought near it (KL). The student's last hidden state is also brought near the
target's (relative squared error).
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from scripts.drafter.acceptance import Rounds, acceptance_probability, draw_flags, walk_rounds
from scripts.drafter.answers import shard_paths
from scripts.drafter.config import Config, TrainingConfig
from scripts.drafter.store import DrafterError, load_json, load_tensors, save_json, save_tensors
from scripts.drafter.student import Student, make_batch

KL_CHUNK = 256  # rows whose logits exist at one time


@dataclass(slots=True)
class Example:
    """One answered prompt, as training reads it."""

    tokens: torch.Tensor  # [n]
    weights: torch.Tensor  # [n - 1], of the loss at each state but the last
    inputs: torch.Tensor  # [n - 1, hidden], states that enter the trained layers, half precision
    goals: torch.Tensor  # [n - 1, hidden], the target's last states, half precision
    answer_start: int  # index of the answer's first token
    is_greedy: bool


class Data:
    """The examples of a folder of answers; shards that appear while training runs are picked up."""

    def __init__(self, folder: Path, prefix: int, config: Config, embeddings: torch.Tensor) -> None:
        self.folder, self.config, self.embeddings = folder, config, embeddings
        self.state = config.answers.recorded_layers.index(prefix) if prefix else -1
        self.last = len(config.answers.recorded_layers)
        header = load_tensors(folder / "header.safetensors")
        self.header = self._inputs(header)
        self.examples: list[Example] = []
        self.seen: set[Path] = set()

    def refresh(self) -> list[Example]:
        """Loads shards not loaded before and returns their examples."""
        fresh: list[Example] = []
        for path in shard_paths(self.folder):
            if path not in self.seen:
                self.seen.add(path)
                fresh += self.load(path)
        self.examples += fresh
        return fresh

    def load(self, path: Path) -> list[Example]:
        """The examples of one shard."""
        tensors = load_tensors(path)
        inputs, goals = self._inputs(tensors), tensors[f"state{self.last}"]
        starts = tensors["starts"].tolist()
        examples = []
        for number, (start, end) in enumerate(pairwise(starts)):
            tokens, owned = tensors["tokens"][start:end].long(), tensors["owned"][start:end].bool()
            if end - start < 3 or not owned[-1]:
                continue
            given = (~owned).nonzero()
            weights = torch.where(owned[1:], 1.0, self.config.training.prompt_weight)
            rows = slice(start, end - 1)
            answer_start = int(given[-1]) + 1 if len(given) else 0
            is_greedy = float(tensors["temperature"][number]) == 0.0
            # Copies, so that the states of layers that no training uses are not kept alive.
            examples.append(
                Example(tokens, weights, inputs[rows].clone(), goals[rows].clone(), answer_start, is_greedy)
            )
        return examples

    def _inputs(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.state < 0:
            return self.embeddings[tensors["tokens"].long()].half()
        return tensors[f"state{self.state}"]


@dataclass(slots=True)
class Progress:
    """The progress of a training; saved with the weights."""

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    pass_number: int = 0
    used_in_pass: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def loss_and_gradient(
    states: torch.Tensor, goals: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, config: TrainingConfig
) -> tuple[float, torch.Tensor]:
    """The mean loss and its gradient with respect to `states`.

    The gradient of the KL is the difference of the two distributions times the output rows; written out, it needs
    three matrix products a chunk and never holds more than one chunk of logits.
    """
    total = weights.sum()
    gradient = torch.empty_like(states)
    loss = 0.0
    for start in range(0, len(states), KL_CHUNK):
        part = slice(start, start + KL_CHUNK)
        weight = weights[part, None] / total
        difference = states[part] - goals[part]
        energy = goals[part].pow(2).sum(-1, keepdim=True)
        share = weight * config.hidden_weight / energy
        loss += float((share * difference.pow(2)).sum())
        target = torch.log_softmax(goals[part] @ rows.T / config.label_temperature, -1)
        draft = torch.log_softmax(states[part] @ rows.T / config.label_temperature, -1)
        probabilities = target.exp()
        loss += float((weight * (probabilities * (target - draft)).sum(-1, keepdim=True)).sum())
        slope = draft.exp_().sub_(probabilities).mul_(weight / config.label_temperature)
        gradient[part] = slope @ rows + 2.0 * share * difference
    return loss, gradient


def learning_rate(config: TrainingConfig, num_steps: int, num_tokens: int, total_tokens: int) -> float:
    """Warm-up, a constant stretch, then a linear fall over the last `decay_share` of the tokens."""
    warm = min(1.0, (num_steps + 1) / config.warmup_steps)
    left = max(0.0, 1.0 - num_tokens / total_tokens) / config.decay_share
    return config.learning_rate * warm * max(config.final_learning_rate, min(1.0, left))


class Trainer:
    """Trains one student in its own folder, with checkpoints to resume from."""

    def __init__(self, config: Config, student: Student, data: Data, rows: torch.Tensor, folder: Path) -> None:
        self.config, self.student, self.data, self.rows, self.folder = config, student, data, rows, folder
        settings = config.training
        matrices = [parameter for parameter in student.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in student.parameters() if parameter.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(settings.betas[0], settings.betas[1]),
            fused=True,
        )
        self.progress = Progress()

    def run(
        self,
        total_tokens: int,
        validate: Callable[[], dict[str, float]],
        report: Callable[[Progress, float, int], None],
    ) -> None:
        """Trains until `total_tokens`; a stop (Ctrl-C) saves a checkpoint first."""
        settings = self.config.training
        if not self.progress.curve:
            self._record(validate)
        saved = validated = time.monotonic()
        batches: list[list[Example]] = []
        try:
            while self.progress.num_tokens < total_tokens:
                if not batches:
                    batches = self._next_batches()
                began = time.monotonic()
                batch = batches.pop()
                loss = self._step(batch, total_tokens)
                self.progress.used_in_pass += len(batch)
                now = time.monotonic()
                self.progress.seconds += now - began
                report(self.progress, loss, total_tokens)
                if now - validated > settings.validate_minutes * 60:
                    self._record(validate)
                    validated = time.monotonic()
                if now - saved > settings.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
            self._record(validate)
        finally:
            self.save()

    def save(self) -> None:
        """Saves weights, optimiser and progress; the progress is written last and names the tensors it belongs to."""
        tensors = {f"student.{name}": value.detach() for name, value in self.student.named_parameters()}
        for name, parameter in self.student.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        progress = self.progress
        save_tensors(self.folder / "checkpoint.safetensors", tensors, {"steps": str(progress.num_steps)})
        save_json(
            self.folder / "progress.json",
            {name: getattr(progress, name) for name in Progress.__slots__},
        )

    def resume(self) -> bool:
        """Resumes from the folder's checkpoint, if there is one.

        Raises:
            DrafterError: the checkpoint is truncated or belongs to another student.
        """
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        tensors = load_tensors(path)
        load_student(self.student, tensors, path)
        self.progress = Progress(**load_json(self.folder / "progress.json", "training"))
        for name, parameter in self.student.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.progress.num_steps)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
        return True

    def _next_batches(self) -> list[list[Example]]:
        """Returns the rest of this pass over the data in a seeded order, or the next pass after its end."""
        self.data.refresh()
        if not self.data.examples:
            raise DrafterError(f"{self.data.folder} holds no answers: run the stage `answers` first")
        progress = self.progress
        if progress.used_in_pass >= len(self.data.examples):
            progress.pass_number, progress.used_in_pass = progress.pass_number + 1, 0
        # New shards go to the end of the list: the first part of a pass stays the same.
        if progress.pass_number == 0:
            todo = self.data.examples[progress.used_in_pass :]
        else:
            order = list(range(len(self.data.examples)))
            random.Random(f"{self.config.seed} {progress.pass_number}").shuffle(order)
            todo = [self.data.examples[index] for index in order[progress.used_in_pass :]]
        batches, batch, size = [], [], 0
        for example in todo:
            batch.append(example)
            size += len(example.inputs)
            if size >= self.config.training.tokens_per_batch:
                batches.append(batch)
                batch, size = [], 0
        if batch:
            batches.append(batch)
        # A short list at a time while answers are still being made, so that fresh ones are seen early.
        return batches[:8][::-1]

    def _step(self, examples: list[Example], total_tokens: int) -> float:
        settings, num_header = self.config.training, len(self.data.header)
        batch = make_batch(self.data.header, [example.inputs for example in examples])
        states = self.student(batch)
        goals = torch.cat([example.goals for example in examples]).float()
        weights = torch.cat([example.weights for example in examples])
        loss, gradient = loss_and_gradient(states[num_header:].detach(), goals, weights, self.rows, settings)
        if not math.isfinite(loss):
            raise DrafterError(f"the loss became {loss} at step {self.progress.num_steps}: lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        states[num_header:].backward(gradient)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), settings.clip_norm)
        rate = learning_rate(settings, self.progress.num_steps, self.progress.num_tokens, total_tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.progress.num_steps += 1
        self.progress.num_tokens += len(weights)
        return loss

    def _record(self, validate: Callable[[], dict[str, float]]) -> None:
        point = {"trained_tokens": float(self.progress.num_tokens), "seconds": self.progress.seconds, **validate()}
        self.progress.curve.append(point)


def load_student(student: Student, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copies a checkpoint's weights into a student.

    Raises:
        DrafterError: a tensor is missing or has another shape.
    """
    for name, parameter in student.named_parameters():
        value = tensors.get(f"student.{name}")
        if value is None or value.shape != parameter.shape:
            raise DrafterError(f"{path} belongs to another student ({name} differs); use another --work folder")
        parameter.data.copy_(value)


def make_validation(
    student: Student, data: Data, rows: torch.Tensor, to_draft: torch.Tensor, target_rows: torch.Tensor, config: Config
) -> Callable[[], dict[str, float]]:
    """A function that measures a student on the held-out validation answers."""
    # Every other one: validation is run often, and its answers are many.
    examples = data.load(data.folder / "validation.safetensors")[::2]

    def validate() -> dict[str, float]:
        totals: dict[str, Rounds] = {}
        hits: dict[str, list[float]] = {"greedy": [], "sampled": []}
        for start in range(0, len(examples), 8):
            group = examples[start : start + 8]
            with torch.no_grad():
                states = student(make_batch(data.header, [example.inputs for example in group]))[len(data.header) :]
            begin = 0
            for example in group:
                rows_of = slice(begin + example.answer_start - 1, begin + len(example.inputs))
                begin += len(example.inputs)
                mode = "greedy" if example.is_greedy else "sampled"
                probabilities = acceptance_probability(
                    states[rows_of],
                    example.goals[example.answer_start - 1 :].float(),
                    example.tokens[example.answer_start :],
                    lambda x: x @ rows.T,
                    lambda x: x @ target_rows.T,
                    to_draft,
                    0.0 if example.is_greedy else config.answers.temperature,
                )
                hits[mode] += probabilities.tolist()
                for flags in draw_flags(probabilities, 1 if example.is_greedy else 4, config.seed):
                    rounds = walk_rounds(flags, 4)
                    totals[mode] = totals[mode] + rounds if mode in totals else rounds
        result = {f"{mode}_acceptance": sum(values) / max(1, len(values)) for mode, values in hits.items()}
        return result | {f"{mode}_tokens_per_round": rounds.tokens_per_round for mode, rounds in totals.items()}

    return validate
