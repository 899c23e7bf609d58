"""The prompts of the cells, as token ids: every engine gets the same ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minedraft.text.tokenizer import Tokenizer
from scripts.lib.peers.cells import Cell

_FILE = Path(__file__).with_name("prompts.json")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Chat prompts with the model's own template.

    Attributes:
        source: where the texts come from, with their licences.
        token_ids: one prompt each.
    """

    source: str
    token_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def load(cls, model: Path) -> PromptSet:
        """Return the prompts that come with the benchmark, for the tokenizer of a model folder.

        Raises:
            ModelError: the folder's tokenizer cannot be used.
        """
        content = json.loads(_FILE.read_text(encoding="utf-8"))
        tokenizer = Tokenizer.load(model)
        messages = ([{"role": "user", "content": row["prompt"]}] for row in content["prompts"])
        return cls(content["source"], tuple(tuple(tokenizer.encode_chat([*each])) for each in messages))

    def of(self, cell: Cell) -> list[tuple[int, ...]]:
        """Return the prompts of a cell, `cell.num_in_flight` many.

        Chat prompts follow each other through the set, so that cells with 1, 2, 4 ... prompts share none. A
        prompt of a given length is cut from the set's tokens, end to end; it begins at another place for each
        row and length, so that no two share a beginning that a cache could hold.
        """
        count, length, total = cell.num_in_flight, cell.prompt_len, len(self.token_ids)
        if length is None:
            return [self.token_ids[(count - 1 + i) % total] for i in range(count)]
        return [self._cut((length // 48 + i) % total, length) for i in range(count)]

    def _cut(self, first: int, length: int) -> tuple[int, ...]:
        """Return `length` tokens from the beginning of prompt `first` on, around the set as often as needed."""
        order = (self.token_ids[(first + i) % len(self.token_ids)] for i in range(length))
        return tuple(islice((token for prompt in order for token in prompt), length))
