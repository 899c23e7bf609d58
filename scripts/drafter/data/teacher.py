"""Stage `teacher`: runs answered sequences through the target once and keeps the states that training reads.

States are kept in bfloat16, a tensor for each layer, so that a training maps only the layers it needs. The state
after the last layer, normed and multiplied with the output rows, gives the target's whole distribution back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from scripts.drafter.data.answers import HELD_OUT, shard_paths
from scripts.drafter.store import DrafterError, load_tensors, save_tensors

BATCH_TOKENS = 2048  # padded tokens that run together


def states_path(answers: Path) -> Path:
    """Returns the file of states that belongs to a file of answers."""
    return answers.parent.with_name("states") / answers.name


def make_states(
    model: PreTrainedModel,
    answers: Path,
    layers: list[int],
    report: Callable[[int], None],
    num_shards: int | None = None,
) -> None:
    """Makes the states of every file of answers that lacks some of these layers; held-out ones first.

    Args:
        report: is told the number of tokens done.
        num_shards: of the training answers that are looked at, the oldest; None: all.

    Raises:
        DrafterError: there are no answers.
    """
    held_out = [path for split in HELD_OUT if (path := answers / f"{split}.safetensors").exists()]
    paths = [*held_out, *shard_paths(answers)[:num_shards]]
    if not paths:
        raise DrafterError(f"{answers} holds no answers: run the stage `answers` first")
    num_tokens = 0
    for path in paths:
        tensors = load_tensors(path)
        starts = tensors["starts"].tolist()
        stored = stored_layers(states_path(path))
        if len(starts) > 1 and not set(layers) <= stored:
            sequences = [tensors["tokens"][begin:end].long() for begin, end in pairwise(starts)]
            save_tensors(states_path(path), teacher_states(model, sequences, sorted({*layers, *stored})))
        num_tokens += starts[-1]
        report(num_tokens)


def stored_layers(path: Path) -> set[int]:
    """Returns the layers whose states a file holds; none if it is missing."""
    if not path.exists():
        return set()
    with safe_open(path, "pt") as file:
        return {int(name.removeprefix("layer")) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def load_teacher(folder: Path) -> PreTrainedModel:
    """Loads any causal language model that transformers knows, in bfloat16.

    Raises:
        DrafterError: the folder holds no model that transformers can load.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise DrafterError(f"{folder} holds no model that transformers can load: {error}") from error
    return model.eval()


@contextmanager
def recorded_states(model: PreTrainedModel, layers: list[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Yields a dictionary that each forward fills with the residual stream after so many layers; 0: embeddings."""
    states: dict[int, torch.Tensor] = {}
    handles = []
    for layer in layers:
        module = model.get_decoder().layers[layer - 1] if layer else model.get_input_embeddings()

        def keep(_module: object, _inputs: object, output: object, layer: int = layer) -> None:
            state = output[0] if isinstance(output, tuple) else output
            assert isinstance(state, torch.Tensor), "a decoder layer returns a tensor, or a tuple that begins with one"
            states[layer] = state

        handles.append(module.register_forward_hook(keep))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def teacher_states(model: PreTrainedModel, sequences: list[torch.Tensor], layers: list[int]) -> dict[str, torch.Tensor]:
    """Returns `layer<L>` [sum of lengths, hidden] for each layer, bfloat16, the sequences end to end.

    Args:
        sequences: token ids [n] each.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    found: dict[int, list[torch.Tensor]] = {}
    with recorded_states(model, layers) as states:
        while order:
            # Right padding: causal attention never looks at it.
            longest = len(sequences[order[-1]])
            group = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // longest)))]
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            for row, index in enumerate(group):
                ids[row, : len(sequences[index])] = sequences[index]
            model.get_decoder()(input_ids=ids, use_cache=False)
            for row, index in enumerate(group):
                length = len(sequences[index])
                found[index] = [states[layer][row, :length].to(torch.bfloat16) for layer in layers]
    return {
        f"layer{layer}": torch.cat([found[index][number] for index in range(len(sequences))])
        for number, layer in enumerate(layers)
    }
