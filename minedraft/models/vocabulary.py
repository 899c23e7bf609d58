"""The (id, token) table of a tokenizer.json and its fingerprint, which must be the same for both workers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError
from minedraft.models.files import read_json_object


@dataclass(frozen=True, slots=True)
class VocabSummary:
    """fingerprint: sha256, in hex, over `id NUL token NUL` in the order of the ids."""

    fingerprint: str
    largest_id: int


def read_vocabulary(model_dir: Path) -> dict[int, str]:
    """Return id -> token of the model in `model_dir`, added tokens included.

    It only reads the JSON: building the tokenizer takes several times as long.

    Raises:
        ModelError: tokenizer.json is missing, not JSON, or of a kind without a vocabulary.
    """
    path = Path(model_dir) / "tokenizer.json"
    tokenizer = read_json_object(path, "tokenizer", must_exist=True)
    try:
        return _to_table(tokenizer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("tokenizer", str(path), "not a tokenizer with a vocabulary (truncated?)") from error


def summarise_vocabulary(model_dir: Path) -> VocabSummary:
    """Return the summary of the vocabulary in `model_dir`; cached until the file changes."""
    path = Path(model_dir) / "tokenizer.json"
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError("tokenizer", str(path), f"cannot be read ({error.strerror})") from error
    return _summarise(str(model_dir), stat.st_mtime_ns, stat.st_size)


def check_vocabulary_fits(model_dir: Path, vocab_size: int, field: str) -> None:
    """Raise ModelError unless the model's `vocab_size` token rows cover every id of its tokenizer.

    A prompt with the id of a missing row could not be answered.
    """
    largest_id = summarise_vocabulary(model_dir).largest_id
    if largest_id >= vocab_size:
        limit = f"it has {vocab_size} token rows, the tokenizer needs {largest_id + 1}"
        raise ModelError(field, str(model_dir), limit)


def vocab_fingerprint(model_dir: Path) -> str:
    """Return the fingerprint alone (see VocabSummary)."""
    return summarise_vocabulary(model_dir).fingerprint


@lru_cache(maxsize=8)
def _summarise(model_dir: str, mtime_ns: int, size: int) -> VocabSummary:
    ordered = sorted(read_vocabulary(Path(model_dir)).items())
    text = "".join(f"{token_id}\0{token}\0" for token_id, token in ordered)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return VocabSummary(digest, ordered[-1][0] if ordered else -1)


def _to_table(tokenizer: dict[str, Any]) -> dict[int, str]:
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        table = {int(token_id): str(token) for token, token_id in vocab.items()}
    else:  # Unigram: a list of [token, score]
        table = {token_id: str(entry[0]) for token_id, entry in enumerate(vocab)}
    for added in tokenizer.get("added_tokens") or ():
        table[int(added["id"])] = str(added["content"])
    return table
