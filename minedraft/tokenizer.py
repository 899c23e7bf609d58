"""Text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer

from minedraft.chat_template import ChatTemplate, Message
from minedraft.detokenizer import StreamDecoder, make_stream_decoder
from minedraft.errors import ModelError
from minedraft.model_folder import read_eos_ids
from minedraft.stop_strings import StopFinder
from minedraft.vocabulary import vocab_fingerprint

__all__ = ["StopFinder", "StreamDecoder", "Tokenizer", "vocab_fingerprint"]


class Tokenizer:
    """The tokenizer of one model folder.

    Attributes:
        vocab_size: number of token ids the tokenizer knows (the model's output layer may be padded
            beyond it).
        eos_ids: ids that end an answer.
        fingerprint: of the (id, token) table; the drafter and the verifier must have the same.
    """

    def __init__(
        self, raw: RawTokenizer, chat_template: ChatTemplate, eos_ids: tuple[int, ...], fingerprint: str
    ) -> None:
        self._raw = raw
        self._chat_template = chat_template
        self._special_ids = frozenset(i for i, token in raw.get_added_tokens_decoder().items() if token.special)
        self.vocab_size: int = raw.get_vocab_size(with_added_tokens=True)
        self.eos_ids = eos_ids
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Load tokenizer.json and what lies beside it.

        Raises:
            ModelError: a file is missing or cannot be used.
        """
        model_dir = Path(model_dir)
        file = model_dir / "tokenizer.json"
        if not file.exists():
            raise ModelError("tokenizer", str(file), "no such file")
        try:
            raw = RawTokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError("tokenizer", str(file), f"cannot be read ({error})") from error
        # A file saved while training may cut or pad every prompt to a fixed length.
        raw.no_truncation()
        raw.no_padding()
        return cls(raw, ChatTemplate.load(model_dir), read_eos_ids(model_dir), vocab_fingerprint(model_dir))

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template.source is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, with the tokens around it (BOS, say) that the tokenizer adds."""
        ids: list[int] = self._raw.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids` at once; ids that no token has give nothing."""
        text: str = self._raw.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder for one answer that arrives in pieces."""
        return make_stream_decoder(self._raw, self._special_ids if skip_special_tokens else frozenset())

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the prompt text of a chat (see ChatTemplate.render)."""
        return self._chat_template.render(messages, add_generation_prompt)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Return the prompt ids of a chat; the template itself writes the special tokens."""
        return self.encode(self.render_chat(messages, add_generation_prompt), add_special_tokens=False)
