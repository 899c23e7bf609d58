"""Text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

from minedraft.errors import InvalidRequest, ModelError
from minedraft.models.generation_config import read_eos_ids
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.text.chat_template import ChatTemplate, Message, read_special_tokens
from minedraft.text.detokenizer import StreamDecoder, make_stream_decoder, token_bytes
from minedraft.text.stop_strings import StopFinder

__all__ = ["StopFinder", "StreamDecoder", "Tokenizer", "vocab_fingerprint"]


class Tokenizer:
    """The tokenizer of one model folder.

    Attributes:
        vocab_size: number of token ids the tokenizer knows (the model's output layer may be padded
            beyond it).
        max_token_bytes: the most bytes of text that one token stands for.
        eos_ids: ids that end an answer: those of the model's configs, and the tokenizer's own.
        fingerprint: sha256 of the (id, token) table; drafter and verifier must have the same.
    """

    def __init__(
        self, raw: RawTokenizer, chat_template: ChatTemplate, eos_ids: tuple[int, ...], fingerprint: str
    ) -> None:
        self._raw = raw
        self._chat_template = chat_template
        added = raw.get_added_tokens_decoder()
        self._added_texts = frozenset(token.content for token in added.values())
        self._special_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(self._special_tokens.values())
        self._prefix = _find_prefix(raw)
        self.vocab_size: int = raw.get_vocab_size(with_added_tokens=True)
        vocab = raw.get_vocab(with_added_tokens=True)
        self.max_token_bytes: int = max((len(token.encode()) for token in vocab), default=1)
        self.eos_ids = eos_ids
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Return the tokenizer of a folder: tokenizer.json, the chat template and the configs.

        Raises:
            ModelError: a file is missing or cannot be used.
        """
        # Encode in the calling thread: a thread pool would take cores from the workers, and its threads
        # would not have the caller's priority.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        model_dir = Path(model_dir)
        file = model_dir / "tokenizer.json"
        if not file.exists():
            raise ModelError("tokenizer", str(file), "no such file")
        try:
            raw = RawTokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError("tokenizer", str(file), f"cannot be read ({error})") from error
        # A file saved during training may truncate or pad every prompt to a fixed length.
        raw.no_truncation()
        raw.no_padding()
        fingerprint = vocab_fingerprint(model_dir)
        eos_ids = read_eos_ids(model_dir)
        own_eos_id = raw.token_to_id(read_special_tokens(model_dir).get("eos_token", ""))
        if own_eos_id is not None and own_eos_id not in eos_ids:
            eos_ids += (own_eos_id,)
        return cls(raw, ChatTemplate.load(model_dir), eos_ids, fingerprint)

    def to_json(self) -> str:
        """Return the tokenizer as its file has it."""
        text: str = self._raw.to_str()
        return text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, with the tokens that the tokenizer adds around it (BOS, say).

        If the text itself starts with the added tokens, they appear once, as in training; transformers
        would double them.
        """
        # Unlike `encode`, the batch form releases the GIL; the ids are the same.
        ids: list[int] = self._raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        prefix_len = len(self._prefix)
        if add_special_tokens and prefix_len and ids[prefix_len : 2 * prefix_len] == self._prefix:
            return ids[prefix_len:]
        return ids

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text` alone."""
        return len(self._raw.encode_batch_fast([text], add_special_tokens=False)[0])

    def stop_ids(self, stop: Iterable[str]) -> tuple[int, ...]:
        """Return the ids of the special tokens among the stop strings; their text never appears in an answer.

        Raises:
            InvalidRequest: a stop string contains the text of a special token, so it could never match.
        """
        ids: list[int] = []
        for text in stop:
            if text in self._special_tokens:
                ids.append(self._special_tokens[text])
            elif special := next((token for token in self._special_tokens if token in text), None):
                limit = (
                    f"the special token {special} has no text; use stop_token_ids {self._special_tokens[special]}, "
                    "or skip_special_tokens False"
                )
                raise InvalidRequest("stop", text, limit)
        return tuple(ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; unknown ids give no text."""
        text: str = self._raw.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, which need not be whole characters; none for an unknown id."""
        return token_bytes(self._raw, token_id)

    def stream_decoder(self, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()) -> StreamDecoder:
        """Return a decoder for one answer that arrives in pieces and continues `prompt_ids`."""
        return make_stream_decoder(self._raw, self._special_ids if skip_special_tokens else frozenset(), prompt_ids)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the prompt text of a chat (see ChatTemplate.render)."""
        return self._chat_template.render(messages, add_generation_prompt)

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template describes tools to the model (see ChatTemplate.knows_tools)."""
        return self._chat_template.knows_tools

    def is_added(self, text: str) -> bool:
        """Whether a text is a token that was added to the vocabulary, so that no other tokens make it up."""
        return text in self._added_texts

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Return the prompt ids of a chat; the template itself writes the special tokens. tools: see
        ChatTemplate.render."""
        text = self._chat_template.render(messages, add_generation_prompt, tools)
        return self.encode(text, add_special_tokens=False)


def _find_prefix(raw: RawTokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before every text."""
    text: list[int] = raw.encode("a", add_special_tokens=False).ids
    whole: list[int] = raw.encode("a", add_special_tokens=True).ids
    return next((whole[:i] for i in range(len(whole)) if text and whole[i : i + len(text)] == text), [])
