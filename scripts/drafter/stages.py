"""The stages of scripts/train_drafter, as functions of a configuration and folders."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from scripts.drafter.answers import make_answers, shard_paths
from scripts.drafter.config import Config, StudentConfig
from scripts.drafter.llama import load_target
from scripts.drafter.prompts import load_prompts, make_prompts
from scripts.drafter.store import DrafterError, load_tensors, save_tensors
from scripts.drafter.student import (
    Batch,
    Student,
    draft_vocabulary,
    fit_blocks,
    make_batch,
    num_trained_parameters,
)
from scripts.drafter.training import Data, Progress, Trainer, load_student, make_validation

VOCABULARY_FILE = "draft_vocab.safetensors"


def prompts(config: Config, work: Path, downloads: Path) -> list[str]:
    """Makes prompts.json; returns a line for each split and kind, with their numbers."""
    made = make_prompts(config, downloads, work / "prompts.json")
    counts = Counter((one.split, one.kind, "self-written" if one.is_self_written else "given") for one in made)
    return [f"{number:6,} {' '.join(key)}" for key, number in sorted(counts.items())]


def answers(
    config: Config, work: Path, target: Path, total: int, part: tuple[int, int], report: Callable[[int, int], None]
) -> None:
    """Makes the shards of answers."""
    made = load_prompts(work / "prompts.json")
    model, tokenizer = load_target(target, config.target), load_tokenizer(target)
    make_answers(config, model, tokenizer, made, work / "answers", total, report, *part)


def student(config: Config, work: Path, target: Path) -> list[str]:
    """Makes the draft vocabulary and the start of the student."""
    model = load_target(target, config.target)
    path = work / VOCABULARY_FILE
    if not path.exists():
        special = load_tokenizer(target).all_special_ids
        ids = draft_vocabulary(work / "answers", config.draft_vocabulary.size, model.config.vocab_size, special)
        save_tensors(path, {"ids": ids})
    made, data = start_student(config, work, model)
    weights = {f"student.{name}": parameter.detach() for name, parameter in made.named_parameters()}
    save_tensors(work / "student.safetensors", weights)
    point = validation_of(config, work, model, made, data)()
    return [
        f"{config.student.num_layers} layers, {num_trained_parameters(made):,} trained parameters",
        f"before training: {point}",
    ]


def training(
    config: Config, work: Path, target: Path, total: int, report: Callable[[Progress, float, int], None]
) -> list[dict[str, float]]:
    """Trains the student, from its checkpoint if there is one; returns the curve."""
    model = load_target(target, config.target)
    made = Student(model, config.student.trained)
    start = work / "student.safetensors"
    load_student(made, load_tensors(start), start)
    data = Data(work / "answers", config.student.prefix, config, model.model.embed_tokens.weight)
    rows = model.lm_head.weight[draft_ids(work)].clone()
    trainer = Trainer(config, made, data, rows, work / "training")
    trainer.resume()
    trainer.run(total, validation_of(config, work, model, made, data), report)
    return trainer.progress.curve


def start_student(config: Config, work: Path, model: LlamaForCausalLM) -> tuple[Student, Data]:
    """Returns a pruned copy of the target after its closed-form start, and the training data."""
    made = Student(model, config.student.trained)
    data = Data(work / "answers", config.student.prefix, config, model.model.embed_tokens.weight)
    batches = fit_batches(model, data, config.student)
    if not batches:
        raise DrafterError(f"{work / 'answers'} holds no answers: run the stage `answers` first")
    fit_blocks(made, batches, config.student.fit_ridge)
    return made, data


def fit_batches(model: LlamaForCausalLM, data: Data, chosen: StudentConfig) -> list[tuple[Batch, list[torch.Tensor]]]:
    """Returns the inputs of the closed-form start and, per trained layer, the target's states that it should reach."""
    ends = [*chosen.trained[1:], model.config.num_hidden_layers]
    # The target continues from the recorded states, so the layers of the prefix are not run again.
    rest = Student(model, list(range(chosen.prefix, model.config.num_hidden_layers)))
    batches: list[tuple[Batch, list[torch.Tensor]]] = []
    num_tokens = 0
    for path in shard_paths(data.folder):
        examples = data.load(path)
        for first in range(0, len(examples), 8):
            if num_tokens >= chosen.fit_tokens:
                return batches
            group = examples[first : first + 8]
            num_tokens += sum(len(example.inputs) for example in group)
            batch = make_batch(data.header, [example.inputs for example in group])
            states = dict(enumerate(rest.trajectory(batch), chosen.prefix + 1))
            batches.append((batch, [states[end] for end in ends]))
    return batches


def validation_of(
    config: Config, work: Path, model: LlamaForCausalLM, made: Student, data: Data
) -> Callable[[], dict[str, float]]:
    """Returns the validation of a student of this run."""
    ids = draft_ids(work)
    to_draft = torch.full((model.config.vocab_size,), -1)
    to_draft[ids] = torch.arange(len(ids))
    weight = model.lm_head.weight
    return make_validation(made, data, weight[ids].clone(), to_draft, weight, config)


def draft_ids(work: Path) -> torch.Tensor:
    """Returns the ids of the draft vocabulary."""
    return load_tensors(work / VOCABULARY_FILE)["ids"].long()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model folder."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DrafterError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    return tokenizer


def with_student(config: Config, prefix: int, trained: list[int]) -> Config:
    """Returns the configuration with another student."""
    return replace(config, student=replace(config.student, prefix=prefix, trained=trained))
