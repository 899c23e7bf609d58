"""Turns token ids into text as they come, without ever showing half a character."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import Protocol

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, pre_tokenizers

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class StreamDecoder(Protocol):
    """One answer's decoder. Everything pushed and flushed, joined, is the one-shot decode of all ids
    (tokenizers that spell bytes as tokens like <0xE2> may differ where the bytes are no text)."""

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that `ids` complete; an unfinished character is held back."""
        ...

    def flush(self) -> str:
        """Return what was held back, U+FFFD for a character that never was finished."""
        ...


def make_stream_decoder(tokenizer: RawTokenizer, skipped_ids: frozenset[int]) -> StreamDecoder:
    """Return the decoder that fits `tokenizer`; tokens in `skipped_ids` give no text."""
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return ByteLevelDecoder(tokenizer, skipped_ids)
    return WindowDecoder(tokenizer, skipped_ids)


class ByteLevelDecoder:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): each token is some bytes, whatever is around it."""

    def __init__(self, tokenizer: RawTokenizer, skipped_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        return self._utf8.decode(b"".join(self._bytes_of(token_id) for token_id in ids))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _bytes_of(self, token_id: int) -> bytes:
        token = None if token_id in self._skipped_ids else self._tokenizer.id_to_token(token_id)
        if token is None:  # also the padding rows of the output layer
            return b""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()


class WindowDecoder:
    """For every other tokenizer: decodes the new tokens behind the last ones that gave text, so that
    spaces between words come out right, and keeps only the difference."""

    def __init__(self, tokenizer: RawTokenizer, skipped_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        return "".join(self._push_one(token_id) for token_id in ids if token_id not in self._skipped_ids)

    def flush(self) -> str:
        return self._release(self._new_text()) if self._held else ""

    def _push_one(self, token_id: int) -> str:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return ""
        self._held.append(token_id)
        if byte := _BYTE_TOKEN.fullmatch(token):
            self._utf8.decode(bytes.fromhex(byte[1]))
            if self._utf8.getstate()[0]:  # an unfinished character, three bytes at most
                return ""
        else:
            self._utf8.reset()
        return self._release(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._context)
        whole = self._decode(self._context + self._held)
        # A broken character can change how the bytes before it are read: those are out already.
        return whole[len(before) :] if whole.startswith(before) else self._decode(self._held)

    def _release(self, text: str) -> str:
        self._context, self._held = self._held, []
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _map_bytes() -> dict[str, int]:
    """Return the inverse of GPT-2's table that spells every byte as a printable character: printable
    Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order."""
    printable = {chr(byte): byte for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    others = [byte for byte in range(256) if byte not in printable.values()]
    table = printable | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table


_BYTE_OF_CHAR = _map_bytes()
