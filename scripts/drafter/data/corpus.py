"""The answered sequences of a work folder, with the target's states, as padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open

from scripts.drafter.data.answers import read_names, shard_paths
from scripts.drafter.data.teacher import states_path, stored_layers
from scripts.drafter.store import load_tensors

WINDOW = 128  # sequences that are sorted by length together, so that batches have little padding


@dataclass(frozen=True, slots=True)
class Example:
    """One answered sequence.

    Attributes:
        tokens: int64 [n].
        owned: bool [n], the tokens that the target chose.
        answer_start: index of the answer's first token.
        states: the file of the target's states, and the sequence's first row in it.
        temperature: of the answer; 0 is greedy.
        kind: of the prompt.
    """

    tokens: torch.Tensor
    owned: torch.Tensor
    answer_start: int
    states: Path
    first_row: int
    temperature: float
    kind: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right to one length.

    Attributes:
        tokens: int64 [batch, length]; padding is 0.
        layers: for each wanted layer the target's states, bfloat16 [batch, length, hidden].
        weights: float32 [batch, length], of the loss of what is predicted AT a position, so of the token after it;
            0 where there is none.
    """

    tokens: torch.Tensor
    layers: dict[int, torch.Tensor]
    weights: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return int((self.weights > 0).sum())


class Corpus:
    """The training sequences of a work folder; those that appear while a training runs are found."""

    def __init__(self, answers: Path) -> None:
        self.answers = answers
        self._examples: list[Example] = []
        self._seen: set[Path] = set()

    def examples(self) -> list[Example]:
        """Returns all sequences whose states are there, new ones at the end."""
        for path in shard_paths(self.answers):
            if path not in self._seen and states_path(path).exists():
                self._seen.add(path)
                self._examples += load_examples(path)
        return self._examples

    def examples_with(self, layers: Iterable[int]) -> list[Example]:
        """Returns the sequences for which the states of all these layers are there."""
        wanted = set(layers)
        examples = self.examples()
        paths = {path for path in {one.states for one in examples} if wanted <= stored_layers(path)}
        return [one for one in examples if one.states in paths]

    def held_out(self, split: str) -> list[Example]:
        """Returns the sequences of a split that no training reads.

        Raises:
            DrafterError: the split's answers are missing or truncated.
        """
        return load_examples(self.answers / f"{split}.safetensors")


def load_examples(answers: Path) -> list[Example]:
    """Returns the sequences of one file of answers."""
    states = states_path(answers)
    tensors, kinds = load_tensors(answers), read_names(answers, "kinds")
    examples = []
    for number, (start, end) in enumerate(pairwise(tensors["starts"].tolist())):
        owned = tensors["owned"][start:end].bool()
        if end - start < 4 or not owned[-1]:
            continue
        answer_start = int((~owned).nonzero()[-1]) + 1
        examples.append(
            Example(
                tensors["tokens"][start:end].long(),
                owned,
                answer_start,
                states,
                start,
                float(tensors["temperature"][number]),
                kinds[number],
            )
        )
    return examples


def make_batch(examples: Sequence[Example], layers: Iterable[int], question_weight: float) -> Batch:
    """Pads some sequences and reads their states."""
    longest, layers = max(len(one.tokens) for one in examples), sorted(layers)
    tokens = torch.zeros(len(examples), longest, dtype=torch.long)
    weights = torch.zeros(len(examples), longest)
    found: dict[int, torch.Tensor] = {}
    for row, one in enumerate(examples):
        length = len(one.tokens)
        tokens[row, :length] = one.tokens
        own = one.owned[1:].float()
        own[: one.answer_start - 1] *= question_weight
        weights[row, : length - 1] = own
        with safe_open(one.states, "pt") as file:
            for layer in layers:
                part = file.get_slice(f"layer{layer}")[one.first_row : one.first_row + length]
                if layer not in found:
                    found[layer] = torch.zeros(len(examples), longest, part.shape[1], dtype=torch.bfloat16)
                found[layer][row, :length] = part
    return Batch(tokens, found, weights)


def group(examples: list[Example], tokens_per_batch: int, seed: str) -> list[list[Example]]:
    """Returns the sequences in batches of about so many padded tokens, in an order that the seed decides."""
    rng = random.Random(seed)
    shuffled = list(examples)
    rng.shuffle(shuffled)
    groups: list[list[Example]] = []
    for first in range(0, len(shuffled), WINDOW):
        window = sorted(shuffled[first : first + WINDOW], key=lambda one: len(one.tokens))
        batches: list[list[Example]] = [[]]
        for one in window:
            if batches[-1] and (len(batches[-1]) + 1) * len(one.tokens) > tokens_per_batch:
                batches.append([])
            batches[-1].append(one)
        rng.shuffle(batches)
        groups += batches
    return groups


def in_order(examples: list[Example], size: int) -> Iterator[list[Example]]:
    """Yields sequences of about the same length, for an evaluation."""
    ordered = sorted(examples, key=lambda one: len(one.tokens))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]
