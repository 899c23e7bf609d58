"""Stage `prompts`: user prompts of four kinds, split once into training, validation and evaluation rows.

Packages are read as archives of data. The sources, and which rows go where:

  chat         chatterbot-corpus questions, WritingBench requests (English, short), first turns of BFCL multi-turn
  code         HumanEval 0 to 99 for training and validation, 100 to 163 for evaluation only
  summarising  Python's own help topics for training and validation; WikiLingua articles for evaluation only
               (BIG-bench asks that its rows never enter training data)
  tools        BFCL simple_python 0 to 299 for training and validation, 300 to 399 for evaluation only
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.drafter.config import Config
from scripts.drafter.data.packages import Row, chat_rows, code_rows, summary_rows, tool_rows
from scripts.drafter.store import DrafterError, load_json, save_json

MIN_FILE_PROMPTS = 8
KINDS = ("chat", "code", "summarising", "tools")
# Beginnings of self-written user turns; the target writes the rest of a turn, then answers it.
OPENERS: dict[str, tuple[str, ...]] = {
    "chat": (
        *[""] * 16,  # most turns are the target's own from their first word
        "What",
        "How",
        "Why",
        "Can you",
        "Tell me",
        "I",
        "Write a",
        "Explain",
        "Give me",
        "What is the",
    ),
    "code": (
        "Write a Python function that",
        "Write a Python program",
        "Complete this Python function:\n\ndef ",
        "Write a function to",
        "How do I",
        "Fix the bug in this code:\n\n",
        "Complete this Python function:\n\ndef ",
    ),
    "summarising": (
        "Summarize the following text:\n\n",
        "Summarize this in a few sentences:\n\n",
        "Give a short summary of:\n\n",
        "Summarize the following text:\n\nTo",
        "Summarize the following text:\n\nYou",
    ),
    "tools": (),  # made of a training function and an opener of chat, below
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; a self-written one is only the beginning of a user turn."""

    id: str
    kind: str
    split: str  # training, validation or evaluation
    text: str
    is_self_written: bool = False
    messages: list[dict[str, str]] | None = None  # a whole conversation; then `text` is empty


def make_prompts(config: Config, downloads: Path, path: Path) -> list[Prompt]:
    """Reads the packages, splits their rows and saves every prompt, in the order training prompts are answered."""
    rng = random.Random(config.seed)
    prompts: list[Prompt] = []
    tool_headers: list[str] = []
    for kind, rows in (
        ("chat", chat_rows(config, downloads)),
        ("code", code_rows(config, downloads)),
        ("summarising", summary_rows(config, downloads, rng)),
        ("tools", tool_rows(config, downloads, tool_headers)),
    ):
        prompts += _split(kind, rows, config, rng)
    written = [prompt for prompt in prompts if prompt.split == "training"]
    rng.shuffle(written)
    mixed = _mix(written, _self_written(config, tool_headers, rng), config.prompts.self_written_share)
    prompts = [prompt for prompt in prompts if prompt.split != "training"] + mixed
    save_json(path, [asdict(prompt) for prompt in prompts])
    return prompts


def prompts_of_file(config: Config, source: Path, path: Path) -> list[Prompt]:
    """Reads a person's prompts, splits them and saves them with turns that the target writes itself.

    A line of the file is a prompt, or, in a .jsonl file, an object with one of: `messages` (a conversation that ends
    with the user's turn), `turns` (its first one is the prompt), `prompt`, `text`, `question`.

    Raises:
        DrafterError: the file cannot be read, a line is not such an object, or there are fewer than 8 prompts.
    """
    rng = random.Random(config.seed)
    rows = [_read_row(source, number, line) for number, line in enumerate(_lines(source), 1)]
    if len(rows) < MIN_FILE_PROMPTS:
        raise DrafterError(f"{source} holds {len(rows)} prompts; at least {MIN_FILE_PROMPTS} are needed")
    rng.shuffle(rows)
    num_evaluation = min(config.prompts.evaluation_per_kind, len(rows) // 4)
    num_validation = min(config.prompts.validation_per_kind, len(rows) // 4)
    splits = ["evaluation"] * num_evaluation + ["validation"] * num_validation
    splits += ["training"] * (len(rows) - len(splits))
    given = [
        Prompt(f"given-{split}-{number}", "given", split, text, messages=messages)
        for number, (split, (text, messages)) in enumerate(zip(splits, rows, strict=True))
    ]
    own = [
        Prompt(f"self-{number}", "self", "training", "", is_self_written=True)
        for number in range(config.prompts.self_written)
    ]
    training = [prompt for prompt in given if prompt.split == "training"]
    prompts = [prompt for prompt in given if prompt.split != "training"]
    prompts += _mix(training, own, config.prompts.self_written_share)
    save_json(path, [asdict(prompt) for prompt in prompts])
    return prompts


def _lines(source: Path) -> list[str]:
    try:
        return [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DrafterError(f"{source} cannot be read as a file of prompts: {error}") from error


def _read_row(source: Path, number: int, line: str) -> tuple[str, list[dict[str, str]] | None]:
    if source.suffix != ".jsonl":
        return line.strip(), None
    try:
        value = json.loads(line)
        if value.get("messages"):
            return "", [{"role": str(one["role"]), "content": str(one["content"])} for one in value["messages"]]
        if value.get("turns"):
            return str(value["turns"][0]), None
        return str(next(value[name] for name in ("prompt", "text", "question") if value.get(name))), None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DrafterError(
            f"{source}, line {number}: not an object with messages, turns, prompt, text or question"
        ) from error


def load_prompts(path: Path) -> list[Prompt]:
    """Loads the prompts that `make_prompts` saved."""
    return [Prompt(**row) for row in load_json(path, "prompts")]


def _split(kind: str, rows: list[Row], config: Config, rng: random.Random) -> Iterator[Prompt]:
    # Three kinds have rows for evaluation only; chat draws its evaluation rows from all of its rows.
    reserved = [text for text, trainable in rows if not trainable]
    free = [text for text, trainable in rows if trainable]
    rng.shuffle(reserved)
    rng.shuffle(free)
    num_evaluation, num_validation = config.prompts.evaluation_per_kind, config.prompts.validation_per_kind
    if not reserved:
        reserved, free = free[:num_evaluation], free[num_evaluation:]
    if len(reserved) < num_evaluation or len(free) <= num_validation:
        raise DrafterError(f"too few prompts of kind {kind}: {len(reserved)} for evaluation, {len(free)} for training")
    splits = (
        ("evaluation", reserved[:num_evaluation]),
        ("validation", free[:num_validation]),
        ("training", free[num_validation:]),
    )
    for split, texts in splits:
        for number, text in enumerate(texts):
            yield Prompt(f"{kind}-{split}-{number}", kind, split, text)


def _self_written(config: Config, tool_headers: list[str], rng: random.Random) -> list[Prompt]:
    prompts = []
    for number in range(config.prompts.self_written):
        kind = KINDS[number % len(KINDS)] if number % 3 else "chat"
        text = rng.choice(tool_headers) + rng.choice(OPENERS["chat"]) if kind == "tools" else rng.choice(OPENERS[kind])
        prompts.append(Prompt(f"{kind}-self-{number}", kind, "training", text, is_self_written=True))
    return prompts


def _mix(written: list[Prompt], own: list[Prompt], own_share: float) -> list[Prompt]:
    # Interleaved evenly, so that any stopping point has the same mixture until the user prompts run out.
    mixed: list[Prompt] = []
    written_left, own_left = list(reversed(written)), list(reversed(own))
    debt = 0.0
    while written_left or own_left:
        debt += own_share
        if own_left and (debt >= 1.0 or not written_left):
            debt -= 1.0
            mixed.append(own_left.pop())
        else:
            mixed.append(written_left.pop())
    return mixed
