"""The stages of scripts/train_drafter, as functions of a run's folders and constants."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from scripts.drafter.config import Config
from scripts.drafter.data.answers import make_answers
from scripts.drafter.data.corpus import Corpus
from scripts.drafter.data.prompts import load_prompts, make_prompts, prompts_of_file
from scripts.drafter.data.teacher import load_teacher, make_states
from scripts.drafter.data.vocabulary import draft_vocabulary
from scripts.drafter.evaluating.measure import measure, validation_point
from scripts.drafter.head.objective import HeadDrafter
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.store import DrafterError, load_json, load_tensors, save_json, save_tensors
from scripts.drafter.training.drafter import TargetParts
from scripts.drafter.training.trainer import Budget, Progress, Trainer, load_weights

HEAD, MODEL = "head", "model"
VALIDATION_KS = {HEAD: (3,), MODEL: (4,)}


@dataclass(frozen=True)
class Run:
    """A run: its constants, the target, the kind of drafter, and the folder of its files."""

    config: Config
    work: Path
    target: Path
    kind: str

    @property
    def answers(self) -> Path:
        """Folder of the answers."""
        return self.work / "answers"

    @property
    def training(self) -> Path:
        """Folder of the training's checkpoint."""
        return self.work / self.kind

    @property
    def times(self) -> Path:
        """File of the times that the stages took."""
        return self.work / f"{self.kind}-times.json"

    @cached_property
    def model(self) -> PreTrainedModel:
        """The target in bfloat16."""
        return load_teacher(self.target)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer.

        Raises:
            DrafterError: the folder has none.
        """
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.target, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DrafterError(f"{self.target} has no tokenizer that transformers can load: {error}") from error
        return tokenizer

    @cached_property
    def parts(self) -> TargetParts:
        """The target's parts that drafters use; the draft vocabulary is chosen here, once."""
        path = self.training / "draft_vocab.safetensors"
        if not path.exists():
            sizes, rows = self.config.draft_vocabulary, self.model.get_output_embeddings().weight.shape[0]
            size = sizes.head if self.kind == HEAD else sizes.model
            ids = draft_vocabulary(self.answers, size, rows, self.tokenizer.all_special_ids)
            save_tensors(path, {"ids": ids})
        return TargetParts(self.model, load_tensors(path)["ids"].long())

    @cached_property
    def corpus(self) -> Corpus:
        """The training sequences."""
        return Corpus(self.answers)

    def new_drafter(self) -> HeadDrafter | ModelDrafter:
        """A drafter of this run's kind before its start."""
        training = self.config.training[self.kind]
        if self.kind == HEAD:
            return HeadDrafter(self.parts, self.config.head, training)
        return ModelDrafter(self.parts, self.config.model, training)

    def trained_drafter(self) -> HeadDrafter | ModelDrafter:
        """The drafter as its training left it.

        Raises:
            DrafterError: there is no training.
        """
        path = self.training / "checkpoint.safetensors"
        drafter = self.new_drafter()
        load_weights(drafter.parameters(), load_tensors(path), path)
        return drafter


@contextmanager
def timed(run: Run, stage: str) -> Iterator[None]:
    """Adds the time of a block to the times of a stage, also if the block is stopped."""
    began, spent = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        found = times(run)
        before = found.get(stage, {"seconds": 0.0, "processor_seconds": 0.0})
        seconds, processor_seconds = time.monotonic() - began, time.process_time() - spent
        found[stage] = {
            "seconds": round(before["seconds"] + seconds, 1),
            "processor_seconds": round(before["processor_seconds"] + processor_seconds, 1),
        }
        save_json(run.times, found)


def times(run: Run) -> dict[str, dict[str, float]]:
    """Returns the seconds of each stage so far, by the clock and of all processors."""
    found: dict[str, dict[str, float]] = load_json(run.times, "prompts") if run.times.exists() else {}
    return found


def prompts(run: Run, downloads: Path, source: Path | None) -> list[str]:
    """Makes prompts.json; returns a line for each split and kind, with their numbers."""
    path = run.work / "prompts.json"
    made = make_prompts(run.config, downloads, path) if source is None else prompts_of_file(run.config, source, path)
    counts = Counter((one.split, one.kind, "self-written" if one.is_self_written else "given") for one in made)
    return [f"{number:6,} {' '.join(key)}" for key, number in sorted(counts.items())]


def answers(run: Run, total: int, part: tuple[int, int], report: Callable[[int, int], None]) -> None:
    """Makes the shards of answers."""
    made = load_prompts(run.work / "prompts.json")
    make_answers(run.config, run.target, run.tokenizer, made, run.answers, total, report, *part)


def num_answer_tokens(run: Run) -> int:
    """The tokens of all answers so far, with their prompts."""
    paths = run.answers.glob("*.safetensors")
    return sum(len(load_tensors(path)["tokens"]) for path in paths)


def teacher(run: Run, report: Callable[[int], None]) -> None:
    """Makes the target's states of every answer: those that a drafter of this kind reads, or its start is fitted to."""
    num_layers = run.model.config.get_text_config().num_hidden_layers
    if run.kind == HEAD:
        start = max(0, num_layers - run.config.head.num_layers)
        layers = {*run.config.head.feature_layers(num_layers), start, num_layers}
    else:
        prefix, trained = run.config.model.layers(num_layers)
        layers = {prefix, *trained[1:], num_layers}
    make_states(run.model, run.answers, sorted(layers - {0}), report)


def training(
    run: Run, total: int, minutes: float, start: Path | None, report: Callable[[Progress, float, list[float]], None]
) -> list[dict[str, float]]:
    """Trains the drafter, from its checkpoint if there is one; returns the curve.

    Args:
        minutes: of steps after which the training ends before `total`; 0: no limit.
        start: a training's checkpoint, or a draft model's folder, whose weights it begins with; None: the closed-form
            start.
    """
    drafter = run.new_drafter()
    settings = run.config.training[run.kind]
    trainer = Trainer(
        settings, run.config.seed, drafter.parameters(), drafter.loss_of, run.corpus.examples, run.training
    )
    if not trainer.resume():
        if start is None:
            drafter.start(run.corpus, run.config.seed)
        else:
            load_start(drafter, start)
    held_out = run.corpus.held_out("validation")
    ks = VALIDATION_KS[run.kind]
    budget = Budget(total, minutes * 60 if minutes else math.inf)
    trainer.run(budget, lambda: validation_point(drafter, held_out, ks, run.config.seed), report)
    return trainer.progress.curve


def load_start(drafter: HeadDrafter | ModelDrafter, source: Path) -> None:
    """Begins with the weights of a drafter that was trained before.

    Raises:
        DrafterError: a tensor is missing or has another shape.
    """
    tensors = load_tensors(source / "model.safetensors" if source.is_dir() else source)
    if isinstance(drafter, ModelDrafter) and source.is_dir():
        from scripts.drafter.model.export import trained_tensors

        tensors = {
            f"weights.{name}": tensors[there]
            for name, there in zip(drafter.parameters(), trained_tensors(drafter), strict=True)
            if there in tensors
        }
    elif source.is_dir():
        tensors = {f"weights.{name}": tensor for name, tensor in tensors.items() if name not in ("d2t", "t2d")}
    load_weights(drafter.parameters(), tensors, source)


def evaluation(run: Run, report: Callable[[int], None]) -> dict[str, Any]:
    """Measures the trained drafter on the evaluation prompts, also as it would be shipped; kept for the card."""
    drafter, shipped = run.trained_drafter(), run.trained_drafter()
    stored_as_shipped(shipped)
    examples = run.corpus.held_out("evaluation")
    progress = load_json(run.training / "progress.json", "training")
    result = {
        "kind": run.kind,
        "target": run.target.name,
        "prompts": dict(Counter(one.kind for one in examples if one.temperature == 0)),
        "answer_tokens": sum(len(one.tokens) - one.answer_start for one in examples),
        "draft_vocabulary": len(run.parts.draft_ids),
        "trained_parameters": sum(parameter.numel() for parameter in drafter.parameters().values()),
        "trained_tokens": progress["num_tokens"],
        "steps": progress["num_steps"],
        "seconds": round(progress["seconds"]),
        "curve": progress["curve"],
        "stages": times(run),
        "acceptance": measure(
            examples, {"trained": drafter, "packed": shipped}, run.config.evaluation, run.config.seed, report
        ),
    }
    save_json(run.training / "evaluation.json", result)
    return result


@torch.no_grad()
def stored_as_shipped(drafter: HeadDrafter | ModelDrafter) -> None:
    """Gives a drafter the weights that its shipped files hold: 6 bits and scales, in bfloat16."""
    from minedraft.models.packed_weights import pack_matrices, unpack_matrices

    for name, parameter in drafter.parameters().items():
        if parameter.ndim == 2:
            packed = pack_matrices({name: parameter.detach().numpy()})
            parameter.copy_(torch.from_numpy(unpack_matrices(packed, Path(name))[name]))
        parameter.copy_(parameter.to(torch.bfloat16))
