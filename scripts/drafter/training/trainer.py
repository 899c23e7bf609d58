"""The training loop that heads and draft models share, with checkpoints to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from scripts.drafter.config import TrainingConfig
from scripts.drafter.data.corpus import Example, group
from scripts.drafter.store import DrafterError, load_json, load_tensors, save_json, save_tensors

Point = dict[str, float]  # of the curve: what a validation measured, and when
REMEMBERED_LOSSES = 20


@dataclass(slots=True)
class Progress:
    """The progress of a training; saved with the weights.

    Attributes:
        num_examples: sequences that this pass is over; later ones belong to the next pass.
        used_batches: batches of this pass that are done.
        seconds: of this thread's own time in steps, so that a pause or a busy machine does not count.
    """

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    pass_number: int = 0
    num_examples: int = 0
    used_batches: int = 0
    curve: list[Point] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a training ends: after so many tokens, or after so many seconds of steps, whichever comes first."""

    tokens: int
    seconds: float = math.inf

    def used(self, progress: Progress) -> float:
        """The share that is used, 1 at the end."""
        return max(progress.num_tokens / self.tokens, progress.seconds / self.seconds)


Loss = Callable[[Sequence[Example], float], tuple[torch.Tensor, list[float], int]]
Report = Callable[[Progress, float, list[float]], None]


class Trainer:
    """Trains the given parameters in a folder.

    Args:
        parameters: by name.
        loss_of: the loss of some examples at a share of the budget, with its parts for reports and the number of
            tokens that count.
        examples: returns all sequences there are; new ones come at the end.
    """

    def __init__(
        self,
        config: TrainingConfig,
        seed: int,
        parameters: Mapping[str, torch.nn.Parameter],
        loss_of: Loss,
        examples: Callable[[], list[Example]],
        folder: Path,
    ) -> None:
        self.config, self.seed, self.parameters, self.folder = config, seed, dict(parameters), folder
        self.loss_of, self.examples = loss_of, examples
        matrices = [parameter for parameter in parameters.values() if parameter.dim() > 1]
        vectors = [parameter for parameter in parameters.values() if parameter.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            fused=True,
        )
        self.progress = Progress()

    def run(self, budget: Budget, validate: Callable[[], Point], report: Report) -> None:
        """Trains to the end of the budget; a stop (Ctrl-C) saves a checkpoint first."""
        saved = validated = time.monotonic()
        if not self.progress.curve:
            self._record(validate)
        batches: list[list[Example]] = []
        recent: list[list[float]] = []
        try:
            while (used := budget.used(self.progress)) < 1.0:
                if not batches:
                    batches = self._batches_of_pass()
                began = time.thread_time()
                recent = [*recent, self._step(batches.pop(), used)][-REMEMBERED_LOSSES:]
                self.progress.seconds += time.thread_time() - began
                now = time.monotonic()
                report(self.progress, budget.used(self.progress), torch.tensor(recent).mean(0).tolist())
                if now - validated > self.config.validate_minutes * 60:
                    self._record(validate)
                    validated = time.monotonic()
                if now - saved > self.config.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
            self._record(validate)
        finally:
            self.save()

    def save(self) -> None:
        """Saves weights, moments and progress."""
        tensors = {f"weights.{name}": value.detach() for name, value in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        save_tensors(self.folder / "checkpoint.safetensors", tensors)
        save_json(self.folder / "progress.json", asdict(self.progress))

    def resume(self) -> bool:
        """Resumes from the folder's checkpoint, if there is one.

        Raises:
            DrafterError: the checkpoint is truncated or of another drafter.
        """
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        tensors = load_tensors(path)
        load_weights(self.parameters, tensors, path)
        self.progress = Progress(**load_json(self.folder / "progress.json", "training"))
        for name, parameter in self.parameters.items():
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.progress.num_steps)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
        return True

    def _batches_of_pass(self) -> list[list[Example]]:
        """Returns the rest of this pass, last batch first, or the next pass after its end."""
        progress, known = self.progress, self.examples()
        if not known:
            raise DrafterError("there are no answers to train on: run the stages `answers` and `teacher` first")
        if not progress.num_examples:
            progress.num_examples = len(known)
        size = self.config.tokens_per_batch
        groups = group(known[: progress.num_examples], size, f"{self.seed} {progress.pass_number}")
        if progress.used_batches >= len(groups):
            progress.pass_number, progress.used_batches = progress.pass_number + 1, 0
            progress.num_examples = len(known)
            groups = group(known, size, f"{self.seed} {progress.pass_number}")
        return groups[progress.used_batches :][::-1]

    def _step(self, examples: Sequence[Example], used: float) -> list[float]:
        settings, progress = self.config, self.progress
        loss, parts, num_tokens = self.loss_of(examples, used)
        if not math.isfinite(float(loss.detach())):
            raise DrafterError(f"the loss became {loss} at step {progress.num_steps}: lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm)
        for part in self.optimizer.param_groups:
            part["lr"] = learning_rate(settings, progress.num_steps, used)
        self.optimizer.step()
        progress.num_steps += 1
        progress.num_tokens += num_tokens
        progress.used_batches += 1
        return parts

    def _record(self, validate: Callable[[], Point]) -> None:
        progress = self.progress
        progress.curve.append({"tokens": progress.num_tokens, "seconds": round(progress.seconds), **validate()})


def learning_rate(config: TrainingConfig, num_steps: int, used: float) -> float:
    """Warm-up, a constant stretch, then a linear fall over the last `decay_share` of the budget."""
    warm = min(1.0, (num_steps + 1) / config.warmup_steps)
    left = max(0.0, 1.0 - used) / config.decay_share
    return config.learning_rate * warm * max(config.final_learning_rate, min(1.0, left))


def load_weights(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copies a checkpoint's weights into the parameters.

    Raises:
        DrafterError: a tensor is missing, or has another shape, or one has no parameter.
    """
    others = {name for name in tensors if name.startswith("weights.")} - {f"weights.{name}" for name in parameters}
    for name, parameter in parameters.items():
        value = tensors.get(f"weights.{name}")
        if value is None or value.shape != parameter.shape or others:
            raise DrafterError(f"{path} belongs to another drafter ({name} differs); use another --work folder")
        parameter.data.copy_(value)
