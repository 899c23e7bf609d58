"""The flags of `SamplingParams`, the same for every command that generates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from minedraft.errors import InvalidRequest
from minedraft.sampling_params import SamplingParams

_F = TypeVar("_F", bound=Callable[..., Any])

_FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--temperature", {"type": float, "help": "0 picks the most probable token; higher is more random. [default: 0]"}),
    ("--top-k", {"type": int, "help": "Sample from the N most probable tokens; 0: from all. [default: 0]"}),
    ("--top-p", {"type": float, "help": "Sample from the most probable tokens that add up to X. [default: 1]"}),
    ("--min-p", {"type": float, "help": "Drop tokens less probable than X times the best one. [default: 0]"}),
    ("--repetition-penalty", {"type": float, "help": "Above 1: discourage tokens of prompt and answer. [default: 1]"}),
    ("--presence-penalty", {"type": float, "help": "Above 0: discourage tokens of the answer. [default: 0]"}),
    ("--frequency-penalty", {"type": float, "help": "Above 0: discourage tokens of the answer by count. [default: 0]"}),
    ("--logit-bias", {"multiple": True, "metavar": "ID:VALUE", "help": "Add VALUE to a token's logit; repeatable."}),
    (
        "--max-new-tokens",
        {"type": int, "help": "Maximum tokens of the answer. [default: 128, in a chat 512, or what fits]"},
    ),
    ("--min-new-tokens", {"type": int, "help": "Do not stop before N tokens. [default: 0]"}),
    ("--stop", {"multiple": True, "metavar": "TEXT", "help": "End the answer at this text; repeatable."}),
    ("--stop-token-ids", {"multiple": True, "type": int, "metavar": "ID", "help": "End at this token; repeatable."}),
    ("--seed", {"type": int, "help": "Make a random answer reproducible."}),
    ("--n", {"type": int, "help": "Number of independent answers. [default: 1]"}),
    ("--ignore-eos", {"is_flag": True, "help": "Do not stop at the model's end-of-sequence token."}),
    ("--keep-special-tokens", {"is_flag": True, "help": "Keep special tokens (as in tool calls) in the text."}),
    ("--logprobs", {"type": int, "help": "With --json: add log-probabilities, and N alternatives per token."}),
    ("--draft-len", {"type": int, "help": "Most drafts per round for this answer. [default: the service's]"}),
    ("--no-speculation", {"is_flag": True, "help": "Decode this answer without drafts."}),
)


def sampling_flags(function: _F) -> _F:
    """Give a click command one flag for each field of SamplingParams."""
    for name, options in reversed(_FLAGS):
        kind = options.get("type")
        metavar = {"metavar": "N" if kind is int else "X"} if kind in (int, float) else {}
        function = click.option(name, default=None, **(metavar | options))(function)
    return function


def to_sampling_params(flags: dict[str, Any]) -> SamplingParams:
    """Return the SamplingParams of the given flags.

    Raises:
        InvalidRequest: a value breaks a limit.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if given.pop("keep_special_tokens", False):
        given["skip_special_tokens"] = False
    if given.pop("no_speculation", False):
        given["speculate"] = False
    if "logit_bias" in given:
        biases = [_to_bias(text) for text in given["logit_bias"]]
        given["logit_bias"] = dict(biases)
        if len(given["logit_bias"]) < len(biases):
            raise InvalidRequest("logit_bias", [token_id for token_id, _ in biases], "has a token twice")
    return SamplingParams(**given)


def _to_bias(text: str) -> tuple[int, float]:
    token_id, separator, value = text.partition(":")
    try:
        if separator:
            return int(token_id), float(value)
    except ValueError:
        pass
    raise InvalidRequest("logit_bias", text, "must be ID:VALUE, for example 42:-5")
