"""Continuous batching of answers on the native executor: the target answers many prompts together."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from minedraft.device import Device, usable_cores
from minedraft_workers.device import pin
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions

BLOCK_SIZE = 16
GROUP = 64  # columns whose largest logit is found together


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to write.

    Attributes:
        name: unique; with the seed it decides every random choice of the answer.
        prompt: token ids before what the target writes, with the chat template's header.
        closing: token ids after a user turn that the target writes itself; None if the prompt is complete.
        temperature: of the answer; 0 is greedy.
        max_question: tokens of a self-written user turn, after which it is closed.
    """

    name: str
    kind: str
    prompt: list[int]
    closing: list[int] | None
    temperature: float
    max_question: int


@dataclass(slots=True)
class Sequence:
    """An answer being written: all its tokens, and which of them the target chose."""

    task: Task
    rng: random.Random
    tokens: list[int]
    owned: list[bool]
    in_question: bool
    num_written: int = 0
    cached_len: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen: questions are always sampled, an answer at its own temperature."""

    seed: int
    max_answer: int
    question_temperature: float
    top_k: int
    end_ids: frozenset[int]


def load_executor(target: Path, slots: int, longest: int) -> Executor:
    """Returns the target's executor on this process's cores, with a cache for `slots` sequences of `longest` tokens."""
    device = Device("cpu", usable_cores())
    pin(device)
    num_blocks = slots * -(-longest // BLOCK_SIZE)
    return Executor.load(target, LoadOptions(device, num_blocks=num_blocks, block_size=BLOCK_SIZE))


def write_answers(executor: Executor, tasks: Iterator[Task], slots: int, sampling: Sampling) -> Iterator[Sequence]:
    """Yields answered sequences as they end. A sequence that ends makes room for the next task.

    A prompt runs in the same forward as the others' next tokens, so no forward is small while tasks last.
    """
    with seldom_collected():
        yield from _write(executor, tasks, slots, sampling)


def _write(executor: Executor, tasks: Iterator[Task], slots: int, sampling: Sampling) -> Iterator[Sequence]:
    active: dict[int, Sequence] = {}
    free = list(range(slots))
    while True:
        while free and (task := next(tasks, None)) is not None:
            active[free.pop()] = start(task, sampling)
        if not active:
            return
        spans = [ForwardSpan(slot, one.cached_len, one.tokens[one.cached_len :], 1) for slot, one in active.items()]
        logits = executor.forward(spans)
        chosen = choose(logits, list(active.values()), sampling)
        for (slot, one), token in zip(list(active.items()), chosen, strict=True):
            one.cached_len = len(one.tokens)
            if append(one, token, sampling):
                executor.release(slot)
                free.append(slot)
                del active[slot]
                yield one


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Takes what exists out of the garbage collector's sight: to look at it again and again is a tenth of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def start(task: Task, sampling: Sampling) -> Sequence:
    """Returns a sequence that holds the task's prompt; its random choices are its own, whatever else is answered."""
    rng = random.Random(f"{sampling.seed} {task.name} {task.temperature}")
    is_open = task.closing is not None
    return Sequence(task, rng, list(task.prompt), [False] * len(task.prompt), is_open)


def choose(logits: torch.Tensor, sequences: list[Sequence], sampling: Sampling) -> list[int]:
    """Returns the next token of each sequence: the best one, or one sampled from the `top_k` best."""
    values, ids = best_columns(logits, sampling.top_k)
    chosen: list[int] = ids[:, 0].tolist()
    rows = [row for row, one in enumerate(sequences) if temperature_of(one, sampling) > 0]
    if not rows:
        return chosen
    values, ids = values[rows], ids[rows]
    temperatures = torch.tensor([temperature_of(sequences[row], sampling) for row in rows])
    sums = torch.softmax(values / temperatures[:, None], -1).cumsum(-1)
    draws = torch.tensor([sequences[row].rng.random() for row in rows])
    ranks = (sums < draws[:, None]).sum(-1).clamp(max=values.shape[1] - 1)
    for row, token in zip(rows, ids.gather(1, ranks[:, None])[:, 0].tolist(), strict=True):
        chosen[row] = token
    return chosen


def best_columns(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the `count` largest values of each row and their columns, [rows, count], largest first.

    The maxima of groups of columns come first: they take one fast pass over the logits, and the largest values are in
    the groups with the largest maxima. torch's argmax and topk take several times as long for a whole row.
    """
    num_groups = logits.shape[1] // GROUP
    if num_groups <= count:
        values, columns = logits.topk(min(count, logits.shape[1]))
        return values, columns
    whole = num_groups * GROUP
    groups = logits[:, :whole].view(-1, num_groups, GROUP).amax(2).topk(count).indices
    members = (groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    rest = torch.arange(whole, logits.shape[1]).expand(len(logits), -1)  # columns that fill no group
    candidates = torch.cat([members, rest], 1)
    values, places = logits.gather(1, candidates).topk(count)
    return values, candidates.gather(1, places)


def temperature_of(one: Sequence, sampling: Sampling) -> float:
    """The temperature of a sequence's next token."""
    return sampling.question_temperature if one.in_question else one.task.temperature


def append(one: Sequence, token: int, sampling: Sampling) -> bool:
    """Adds the chosen token, or the closing of a self-written turn; returns whether the sequence is complete."""
    one.tokens.append(token)
    one.owned.append(True)
    one.num_written += 1
    ended = token in sampling.end_ids
    if not one.in_question:
        return ended or one.num_written >= sampling.max_answer
    if ended or one.num_written >= one.task.max_question:
        closing = one.task.closing or []
        # The end token that the target wrote is usually the closing's first one.
        rest = closing[1:] if closing and token == closing[0] else closing
        one.tokens += rest
        one.owned += [False] * len(rest)
        one.in_question, one.num_written = False, 0
    return False
