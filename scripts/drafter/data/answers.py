"""Stage `answers`: the target answers the prompts; tokens alone are kept.

A shard is one safetensors file: `tokens` int32, the sequences end to end with their chat headers; `owned` uint8, 1
for the tokens that the target chose; `starts` int64, where each sequence begins; `temperature` of each answer. Its
metadata names the tasks and their kinds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from minedraft.models.generation_config import read_eos_ids
from scripts.drafter.config import Config
from scripts.drafter.data.generate import Sampling, Sequence, Task, load_executor, write_answers
from scripts.drafter.data.prompts import Prompt
from scripts.drafter.store import load_tensors, save_tensors

Report = Callable[[int, int], None]  # sequences answered, tokens that the target wrote
HELD_OUT = ("validation", "evaluation")


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chat template puts around a user's first turn; empty, with no closing, where there is no template."""

    header: list[int]
    closing: list[int] | None


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Returns the ids before a first user turn's text and after it, from the target's own chat template."""
    if not tokenizer.chat_template:
        return Frame([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else [], None)
    mark = "\u241e"
    turn = [{"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, after = str(text).split(mark)
    encode = tokenizer.encode
    return Frame(list(encode(before, add_special_tokens=False)), list(encode(after, add_special_tokens=False)))


class Tasks:
    """Makes tasks of prompts."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer, self.frame = config, tokenizer, chat_frame(tokenizer)

    def of_split(self, prompts: list[Prompt], split: str) -> Iterator[Task]:
        """Yields the tasks of a split: a given prompt twice, greedy and sampled, a self-written one once."""
        settings = self.config.answers
        for prompt in prompts:
            if prompt.split != split:
                continue
            temperatures = [0.0, settings.temperature]
            if prompt.is_self_written:
                is_sampled = random.Random(f"{self.config.seed} {prompt.id}").random() < settings.sampled_share
                temperatures = temperatures[is_sampled:][:1]
            for temperature in temperatures:
                if task := self._task(prompt, temperature):
                    yield task

    def _task(self, prompt: Prompt, temperature: float) -> Task | None:
        limit, closing = self.config.prompts.max_prompt_tokens, self.frame.closing
        if prompt.messages is not None:
            ids = self._conversation(prompt.messages)
        else:
            ids = list(self.tokenizer.encode(prompt.text, add_special_tokens=False)) if prompt.text else []
            if prompt.kind == "summarising":
                ids = ids[: limit - len(closing or [])]  # a text to summarise can be cut
            ids = self.frame.header + ids
        if len(ids) > limit + len(self.frame.header) or not ids:
            return None
        if not prompt.is_self_written:
            ids += [] if prompt.messages is not None else closing or []
            closing = None
        max_question = self.config.answers.max_question_tokens
        if prompt.kind == "summarising":
            max_question = self.config.answers.max_text_tokens
        return Task(f"{prompt.id}@{temperature}", prompt.kind, ids, closing, temperature, max_question)

    def _conversation(self, messages: list[dict[str, str]]) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n".join(message["content"] for message in messages)
        return self.frame.header * (self.frame.closing is None) + list(
            self.tokenizer.encode(str(text), add_special_tokens=False)
        )


def make_answers(
    config: Config,
    target: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    folder: Path,
    max_tokens: int,
    report: Report,
    part: int = 0,
    num_parts: int = 1,
) -> None:
    """Answers validation and evaluation prompts (greedy and sampled), then training prompts up to `max_tokens`.

    Existing shards are kept: a stopped run resumes with the tasks that they lack. Several processes can share the
    work: process `part` of `num_parts` answers every `num_parts`-th task, into shards of its own.
    """
    tasks, settings = Tasks(config, tokenizer), config.answers
    sampling = Sampling(
        config.seed,
        settings.max_answer_tokens,
        settings.question_temperature,
        settings.top_k,
        frozenset({*read_eos_ids(target, "target"), *_end_ids(tokenizer)}),
    )
    longest = len(tasks.frame.header) + config.prompts.max_prompt_tokens + len(tasks.frame.closing or [])
    longest += max(settings.max_question_tokens, settings.max_text_tokens) + settings.max_answer_tokens
    executor = load_executor(target, settings.slots, longest)
    for split in HELD_OUT:
        path = folder / f"{split}.safetensors"
        if part == 0 and not path.exists():
            held_out = replace(sampling, max_answer=settings.held_out_answer_tokens)
            answered = []
            for sequence in write_answers(executor, tasks.of_split(prompts, split), settings.slots, held_out):
                answered.append(sequence)
                report(len(answered), 0)
            save_tensors(path, *pack_sequences(sorted(answered, key=lambda one: one.task.name)))
    done, num_tokens = _stored(folder, part)
    report(len(done), num_tokens)
    if num_tokens >= max_tokens:
        return
    own = (task for number, task in enumerate(tasks.of_split(prompts, "training")) if number % num_parts == part)
    todo = (task for task in own if task.name not in done)
    shard: list[Sequence] = []
    number = len(shard_paths(folder, part))
    try:
        for sequence in write_answers(executor, todo, settings.slots, sampling):
            shard.append(sequence)
            num_tokens += sum(sequence.owned)
            done.add(sequence.task.name)
            report(len(done), num_tokens)
            if len(shard) >= settings.shard_sequences:
                save_tensors(folder / f"shard-{part}-{number:04d}.safetensors", *pack_sequences(shard))
                number, shard = number + 1, []
            if num_tokens >= max_tokens:
                break
    finally:
        # Reached by Ctrl-C too: finished answers are kept.
        if shard:
            save_tensors(folder / f"shard-{part}-{number:04d}.safetensors", *pack_sequences(shard))


def shard_paths(folder: Path, part: int | None = None) -> list[Path]:
    """The present shards of one part or of all, oldest first: a resumed training reads them in the same order."""
    paths = folder.glob(f"shard-{'*' if part is None else part}-*.safetensors")
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def pack_sequences(sequences: list[Sequence]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a shard."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    tensors = {
        "tokens": torch.tensor([token for one in sequences for token in one.tokens], dtype=torch.int32),
        "owned": torch.tensor([owned for one in sequences for owned in one.owned], dtype=torch.uint8),
        "starts": torch.tensor([0, *lengths]).cumsum(0),
        "temperature": torch.tensor([one.task.temperature for one in sequences]),
    }
    names = {"tasks": [one.task.name for one in sequences], "kinds": [one.task.kind for one in sequences]}
    return tensors, {key: json.dumps(value) for key, value in names.items()}


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}


def _stored(folder: Path, part: int) -> tuple[set[str], int]:
    done: set[str] = set()
    num_tokens = 0
    for path in shard_paths(folder, part):
        num_tokens += int(load_tensors(path)["owned"].sum())
        done.update(read_names(path, "tasks"))
    return done, num_tokens


def read_names(path: Path, key: str) -> list[str]:
    """The names of a shard's tasks, or their kinds, in order."""
    with safe_open(path, "pt") as file:
        names: list[str] = json.loads(file.metadata()[key])
    return names
