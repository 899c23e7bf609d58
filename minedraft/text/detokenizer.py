"""Turns token ids into text as they arrive, complete characters only."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, pre_tokenizers

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"
_WORD_START = "\u2581"  # of sentencepiece vocabularies, which write it for a space
_MAX_HELD = 256  # tokens: they are decoded again with each new one, which must stay cheap
_NUM_PROMPT_IDS = 128  # ids at the end of a prompt that are looked at; special tokens among them have no text
_NUM_CONTEXT_IDS = 8


class StreamDecoder(Protocol):
    """The decoder of one answer. All texts pushed and flushed, joined, equal the one-shot decode of all ids
    (except that tokenizers with byte tokens like <0xE2> may differ where the bytes are not UTF-8)."""

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that `ids` complete; an incomplete character is held back."""
        ...

    def flush(self) -> str:
        """Return the text held back, with U+FFFD for an incomplete character."""
        ...


def make_stream_decoder(
    tokenizer: RawTokenizer, skipped_ids: frozenset[int], prompt_ids: Sequence[int] = ()
) -> StreamDecoder:
    """Return the decoder that fits `tokenizer`; tokens in `skipped_ids` give no text.

    Args:
        prompt_ids: the prompt. The answer's first text, such as a space or the rest of a character that
            the prompt begins, is then as in the decode of prompt and answer together.
    """
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return ByteLevelDecoder(tokenizer, skipped_ids, prompt_ids)
    return WindowDecoder(tokenizer, skipped_ids, prompt_ids)


def token_bytes(tokenizer: RawTokenizer, token_id: int) -> bytes:
    """Return the bytes that one token stands for; none for an unknown id. They need not be whole characters."""
    token = tokenizer.id_to_token(token_id)
    if token is None:
        return b""
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return _token_to_bytes(token)
    return token.replace(_WORD_START, " ").encode()


class ByteLevelDecoder:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): each token stands for the same bytes in any context."""

    def __init__(self, tokenizer: RawTokenizer, skipped_ids: frozenset[int], prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(prompt_ids[-_NUM_PROMPT_IDS:])

    def push(self, ids: Iterable[int]) -> str:
        return self._utf8.decode(b"".join(self._bytes_of(token_id) for token_id in ids))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _bytes_of(self, token_id: int) -> bytes:
        token = None if token_id in self._skipped_ids else self._tokenizer.id_to_token(token_id)
        return b"" if token is None else _token_to_bytes(token)  # None: also the padding rows of the output layer


class WindowDecoder:
    """For every other tokenizer: decodes the new tokens after the last ones that gave text, so that spaces
    between words are right, and returns only the difference.

    A byte token like <0xE2> shows by itself whether a character is incomplete. For other tokens only the
    text shows it: an incomplete character decodes to U+FFFD, at most three of them.
    """

    def __init__(self, tokenizer: RawTokenizer, skipped_ids: frozenset[int], prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []
        self._held: list[int] = []  # ids whose text is not returned yet, or only in part
        self._num_shown = 0  # characters of their text that are returned
        self.push(self._end_of(prompt_ids))

    def push(self, ids: Iterable[int]) -> str:
        return "".join(self._push_one(token_id) for token_id in ids if self._has_text(token_id))

    def flush(self) -> str:
        return self._show(self._new_text(), is_last=True) if self._held else ""

    def _push_one(self, token_id: int) -> str:
        self._held.append(token_id)
        if byte := _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or ""):
            self._utf8.decode(bytes.fromhex(byte[1]))
            return "" if self._utf8.getstate()[0] else self._show(self._new_text(), is_last=True)
        self._utf8.reset()
        text = self._new_text()
        return self._show(text, is_last=not text.endswith(_REPLACEMENT) or len(self._held) >= _MAX_HELD)

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """Return the last ids that have text, starting with one that is not part of a character."""
        ids = [token_id for token_id in prompt_ids[-_NUM_PROMPT_IDS:] if self._has_text(token_id)]
        start = max(len(ids) - _NUM_CONTEXT_IDS, 0)
        while start > 0 and _REPLACEMENT in self._decode([ids[start]]):
            start -= 1
        return ids[start:]

    def _has_text(self, token_id: int) -> bool:
        return token_id not in self._skipped_ids and self._tokenizer.id_to_token(token_id) is not None

    def _new_text(self) -> str:
        before = self._decode(self._context)
        whole = self._decode(self._context + self._held)
        # An invalid character can change how the bytes before it decode, whose text is returned already.
        return whole[len(before) :] if whole.startswith(before) else self._decode(self._held)

    def _show(self, text: str, *, is_last: bool) -> str:
        """Return the part of the held tokens' text that can be shown now; all of it with `is_last`."""
        start = self._num_shown
        if is_last:
            self._context, self._held, self._num_shown = self._held, [], 0
            return text[start:]
        num_broken = len(text) - len(text.rstrip(_REPLACEMENT))
        self._num_shown = max(start, len(text) - min(num_broken, 3))
        return text[start : self._num_shown]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _token_to_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; added tokens stand for their own text."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode()


def _map_bytes() -> dict[str, int]:
    """Return the inverse of GPT-2's table of bytes as printable characters: printable Latin-1 stands for
    itself, the characters from U+0100 on for the other bytes, in order."""
    printable = {chr(byte): byte for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    others = [byte for byte in range(256) if byte not in printable.values()]
    table = printable | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table


_BYTE_OF_CHAR = _map_bytes()
