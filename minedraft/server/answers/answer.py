"""One sample of one request on its way to the client: tokens become text, and text waits to be sent.

Waiting text is merged into the next message, so a slow client delays only its own answer. What waits is bounded: beyond
MAX_UNSENT_TOKENS the sample is paused until all of it was taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.output import Output, RequestUsage
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import StopFinder, StreamDecoder
from minedraft.types import FinishReason

MAX_MESSAGE_TOKENS = 512
"""Tokens in one message; with 20 alternatives each, about 100 KB."""
MAX_MESSAGE_CHARS = 1 << 15
"""Characters after which a message gets no more tokens; four bytes each are half of what a message may have."""
MAX_UNSENT_TOKENS = 2 * MAX_MESSAGE_TOKENS
"""Tokens that wait for a client, but for those of a last round."""


@dataclass(slots=True)
class _Piece:
    """Tokens that wait to be sent. text: None until they are decoded."""

    text: str | None
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    num_forced: int


@dataclass(slots=True)
class _End:
    """The last message. reason, usage: None if an error follows it."""

    reason: FinishReason | None
    usage: RequestUsage | None
    text: str


class Listener(Protocol):
    """What is told of a sample's progress."""

    def notify(self, is_end: bool) -> None:
        """There is something to send; the end, with True."""

    def hold(self, index: int, is_full: bool) -> None:
        """Sample `index` is full of what its client does not read, or with False can go on."""


class Answer:
    """The pipeline's sink for one sample.

    Args:
        index: the sample's number, 0..n-1.

    Attributes:
        error: the error that the sample ended with. num_tokens: output tokens so far.
    """

    def __init__(
        self,
        index: int,
        decoder: StreamDecoder,
        sampling: SamplingParams,
        listener: Listener,
        request_id: str,
    ) -> None:
        self.error: MineDraftError | None = None
        self._index = index
        self._request_id = request_id
        self._decoder = decoder
        self._stop = StopFinder(sampling.stop)
        # Only a stop string needs the text at once. Otherwise tokens are decoded when they are sent: `on_tokens` is
        # called between two rounds, while the verifier waits.
        self._is_lazy = not sampling.stop
        self._min_new_tokens = sampling.min_new_tokens
        self._listener = listener
        self._is_full = False
        self._pieces: deque[_Piece] = deque()
        self._num_unsent = 0
        self.num_tokens = 0
        self._end: _End | None = None
        self._has_ended = False
        self._has_stopped = False

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], num_forced: int = 0) -> bool:
        """Take new tokens, of which the grammar forced the last `num_forced`. Return True once a stop string has ended
        the text; later tokens are dropped."""
        if self._has_ended:
            return False
        if self._has_stopped:
            return True
        if self._is_lazy:
            self.num_tokens += len(token_ids)
            piece = _Piece(None, token_ids, logprobs, num_forced)
        else:
            piece = self._look_for_stop(token_ids, logprobs)
            piece.num_forced = max(num_forced - (len(token_ids) - len(piece.token_ids)), 0)
        self._pieces.append(piece)
        self._num_unsent += len(piece.token_ids)
        if not self._is_full and self._num_unsent >= MAX_UNSENT_TOKENS:
            self._is_full = True
            self._listener.hold(self._index, True)
        self._listener.notify(False)
        return self._has_stopped

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        """Take the end. Text that was held back is sent, unless it completes a stop string."""
        if error is not None:
            self.fail(error)
        elif not self._has_ended:
            text = self._held_back()
            if reason is FinishReason.LENGTH and self._has_stopped:
                reason = FinishReason.STOP
            self._finish(_End(reason, replace(usage, output_tokens=self.num_tokens), text))

    def fail(self, error: MineDraftError) -> None:
        """End the sample with an error, after its tokens so far; what the pipeline may still deliver is dropped."""
        if not self._has_ended:
            self.error = error
            self._finish(_End(None, None, self._held_back()))

    @property
    def is_sent(self) -> bool:
        """Whether the sample has ended without an error and all of it was taken."""
        return self._has_ended and self.error is None and not self._pieces and self._end is None

    def take(self) -> Iterator[Output]:
        """Yield everything that waits, in as few messages as MAX_MESSAGE_TOKENS allows; the end is in the last one."""
        while self._pieces or self._end is not None:
            output = self._next_message()
            if output.token_ids or output.text or output.finish_reason is not None:
                yield output
        if self._is_full:
            self._is_full = False
            self._listener.hold(self._index, False)

    def _held_back(self) -> str:
        """Return the text that only more tokens would have completed, up to a stop string in it."""
        if self._is_lazy or self._has_stopped:
            return ""
        text, self._has_stopped = self._stop.push(self._decoder.flush())
        return text + self._stop.flush()

    def _finish(self, end: _End) -> None:
        self._end = end
        self._has_ended = True
        self._listener.notify(True)

    def _look_for_stop(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> _Piece:
        """Return the tokens up to the one that completes a stop string, with their text."""
        shown: list[str] = []
        for num_taken, token_id in enumerate(token_ids, start=1):
            text = self._decoder.push((token_id,))
            self.num_tokens += 1
            if self.num_tokens <= self._min_new_tokens:
                shown.append(text)
                continue
            text, self._has_stopped = self._stop.push(text)
            shown.append(text)
            if self._has_stopped:
                token_ids, logprobs = token_ids[:num_taken], logprobs[:num_taken]
                break
        return _Piece("".join(shown), token_ids, logprobs, 0)

    def _next_message(self) -> Output:
        texts: list[str] = []
        num_chars = 0
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        round_lens: list[int] = []
        forced_lens: list[int] = []
        while self._pieces and len(token_ids) < MAX_MESSAGE_TOKENS and num_chars < MAX_MESSAGE_CHARS:
            piece = self._pieces.popleft()
            self._num_unsent -= len(piece.token_ids)
            texts.append(self._decoder.push(piece.token_ids) if piece.text is None else piece.text)
            num_chars += len(texts[-1])
            token_ids += piece.token_ids
            round_lens.append(len(piece.token_ids))
            forced_lens.append(piece.num_forced)
            logprobs += piece.logprobs
        reason = usage = None
        if self._end is not None and not self._pieces:
            end, self._end = self._end, None
            texts.append(self._decoder.flush() if self._is_lazy else end.text)
            reason, usage = end.reason, end.usage
        text = "".join(texts)
        parts = tuple(token_ids), reason, usage, tuple(logprobs), self._index, self._request_id, tuple(round_lens)
        return Output(text, *parts, tuple(forced_lens) if any(forced_lens) else ())
