"""A tokenizer folder for models made on the spot: one word per id, so that a prompt's text fixes its ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def write_tokenizer(folder: Path, num_ids: int) -> Path:
    """Write the files that a scheduler reads to `folder`, for ids below `num_ids`, and return it.

    Id 7 is the word "t7"; a chat is the text of its messages. There are no special tokens, so no answer ends early.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    # As in Llama 3, a word that is a token is taken whole, and text is made of bytes. Of any other word
    # each character is id 0.
    words = [f"t{i}" for i in range(num_ids)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": num_ids}))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    return folder


def to_text(ids: Iterable[int]) -> str:
    """Return the text that the tokenizer reads as `ids`."""
    return " ".join(f"t{i}" for i in ids)
