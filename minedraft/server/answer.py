"""One sample of one request on its way to the client: tokens become text, and text waits to be sent.

Waiting text is merged into the next message, so a slow client delays only its own answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from minedraft.errors import MineDraftError
from minedraft.output import Output, RequestUsage, join_outputs
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import StopFinder, StreamDecoder
from minedraft.types import FinishReason, TokenLogprobs

MAX_MESSAGE_TOKENS = 512
"""Tokens in one message; with 20 alternatives each, about 100 KB."""


@dataclass(slots=True)
class _Piece:
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


class Answer:
    """The pipeline's sink for one sample.

    Args:
        index: the sample's number, 0..n-1.
        notify: called when there is something to send; with True at the end.
    """

    def __init__(
        self,
        index: int,
        decoder: StreamDecoder,
        sampling: SamplingParams,
        notify: Callable[[bool], None],
        request_id: str,
    ) -> None:
        self.error: MineDraftError | None = None
        self._index = index
        self._request_id = request_id
        self._decoder = decoder
        self._stop = StopFinder(sampling.stop)
        self._min_new_tokens = sampling.min_new_tokens
        self._notify = notify
        self._pieces: deque[_Piece] = deque()
        self._num_tokens = 0
        self._end: Output | None = None
        self._has_ended = False
        self._has_stopped = False

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> bool:
        """Take new tokens. Return True once a stop string has ended the text; later tokens are dropped."""
        if self._has_stopped:
            return True
        shown: list[str] = []
        for num_taken, token_id in enumerate(token_ids, start=1):
            text = self._decoder.push((token_id,))
            self._num_tokens += 1
            if self._num_tokens <= self._min_new_tokens:
                shown.append(text)
                continue
            text, self._has_stopped = self._stop.push(text)
            shown.append(text)
            if self._has_stopped:
                token_ids, logprobs = token_ids[:num_taken], logprobs[:num_taken]
                break
        self._pieces.append(_Piece("".join(shown), token_ids, logprobs))
        self._notify(False)
        return self._has_stopped

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        """Take the end. Text that was held back is sent, unless it completes a stop string."""
        text = ""
        if not self._has_stopped:
            text, self._has_stopped = self._stop.push(self._decoder.flush())
            text += self._stop.flush()
        if reason is FinishReason.LENGTH and self._has_stopped:
            reason = FinishReason.STOP
        self.error = error
        if error is None:
            usage = replace(usage, output_tokens=self._num_tokens)
            self._end = Output(text=text, finish_reason=reason, usage=usage)
        self._has_ended = True
        self._notify(True)

    @property
    def is_sent(self) -> bool:
        """Whether the sample has ended without an error and all of it was taken."""
        return self._has_ended and self.error is None and not self._pieces and self._end is None

    def take(self) -> Iterator[Output]:
        """Yield everything that waits, in as few messages as MAX_MESSAGE_TOKENS allows; the end is in the last one."""
        while self._pieces:
            batch: list[Output] = []
            num_tokens = 0
            while self._pieces and num_tokens < MAX_MESSAGE_TOKENS:
                piece = self._pieces.popleft()
                num_tokens += len(piece.token_ids)
                batch.append(Output(piece.text, piece.token_ids, logprobs=piece.logprobs))
            if not self._pieces and self._end is not None:
                batch.append(self._end)
                self._end = None
            yield self._label(join_outputs(batch))
        if self._end is not None:
            end, self._end = self._end, None
            yield self._label(end)

    def _label(self, output: Output) -> Output:
        return replace(output, index=self._index, request_id=self._request_id)
