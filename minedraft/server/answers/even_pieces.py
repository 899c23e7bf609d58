"""Messages that all have the same number of tokens, whatever a round accepted.

How many drafts a round accepts depends on the text, and with one message a round it shows in the number and the sizes
of encrypted packets; see arXiv 2411.01076.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from minedraft.output import Output

_BLOCK_BYTES = 256
_TOKEN_BYTES = 32  # an id and its text, with room for long words


class EvenPieces:
    """Regroups the pieces of a call: each has `num_tokens` tokens, but the last of each sample.

    Their `round_lens` are empty: they would say again what is hidden.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._held: dict[int, Output] = {}

    def push(self, output: Output) -> Iterator[Output]:
        """Take a piece; yield those that are complete."""
        whole = _merge(self._held.pop(output.index, None), output)
        n = self._num_tokens
        while len(whole.token_ids) > n:  # not at n: the end may come alone, and would be one message more
            yield replace(
                whole, token_ids=whole.token_ids[:n], logprobs=whole.logprobs[:n], finish_reason=None, usage=None
            )
            whole = replace(whole, text="", token_ids=whole.token_ids[n:], logprobs=whole.logprobs[n:])
        if whole.finish_reason is not None:
            yield whole
        elif whole.token_ids or whole.text:
            self._held[whole.index] = whole

    def flush(self) -> Iterator[Output]:
        """Yield what waits for more: the call ends with an error."""
        yield from self._held.values()
        self._held.clear()


def block_bytes(num_tokens: int) -> int:
    """Return what the bytes of a message of `num_tokens` tokens are padded to a multiple of."""
    return _BLOCK_BYTES + _TOKEN_BYTES * num_tokens


def _merge(held: Output | None, output: Output) -> Output:
    if held is None:
        return replace(output, round_lens=(), forced_lens=())
    return replace(
        output,
        text=held.text + output.text,
        token_ids=held.token_ids + output.token_ids,
        logprobs=held.logprobs + output.logprobs,
        round_lens=(),
        forced_lens=(),
    )
