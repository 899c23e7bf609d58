"""Tokenises prompts without delaying the answers of other clients.

Short prompts are tokenised in the event loop. Long ones go through one thread of low priority, which leaves
the cores to the workers. Clients take turns there, one prompt each, so a client with many prompts delays only
itself. A prompt that cannot fit the context is refused after about one context of it, whatever its length.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from minedraft.errors import InvalidRequest, Overloaded
from minedraft.prompts import AnyPrompt, ChatPrompt, TextPrompt, TokenPrompt
from minedraft.text.tokenizer import Tokenizer

MAX_WAITING_CHARS = 3 << 20  # per client: four prompts of the largest size, or hundreds of ordinary ones
MAX_ALL_WAITING_CHARS = 16 * MAX_WAITING_CHARS  # of all clients
_INLINE_CHARS = 1024  # tokenised within about a millisecond
_MESSAGE_CHARS = 64  # the cost of rendering a chat message besides its content, in characters
_NICENESS = 5
_PROBABLE_CHARS = 8  # per token: hardly any text has more
_MIN_PIECE_CHARS = 4096
_MAX_PIECE_CHARS = 65536
_CUT_SLACK = 128
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)")
_ANYWHERE = re.compile(r"(?<=\S)(?=\s{0,32}\S)")
_LONG_SPACE = re.compile(r"\s{33}")
_CUT_WINDOW = 1024


@dataclass(eq=False, slots=True)
class _Job:
    """A long prompt that waits for the thread or is being tokenised."""

    prompt: TextPrompt | ChatPrompt
    max_tokens: int
    num_chars: int
    ids: asyncio.Future[list[int]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def is_wanted(self) -> bool:
        """Return whether the ids are still awaited: the request is not gone, and they are not set."""
        return not self.ids.done()


class PromptTokenizer:
    """Tokenises the prompts of one service; belongs to its event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, "tokenizing", initializer=_lower_priority)
        self._waiting: dict[Hashable, deque[_Job]] = {}  # in the order of the clients' turns
        self._is_busy = False

    async def encode(self, prompt: AnyPrompt, client: Hashable, max_tokens: int) -> tuple[int, ...]:
        """Return the ids of a prompt.

        Args:
            client: the client's name; long prompts of different clients take turns.
            max_tokens: the longest prompt that leaves room for an answer in the context.

        Raises:
            InvalidRequest: the prompt has more than `max_tokens` tokens, or none.
            Overloaded: too many characters of this client's prompts, or of all prompts, are waiting.
        """
        if isinstance(prompt, TokenPrompt):
            _check_len(len(prompt.token_ids), max_tokens)
            return prompt.token_ids
        num_chars = _num_chars(prompt)
        if num_chars <= _INLINE_CHARS:
            ids = _encode(self._tokenizer, prompt, max_tokens)
        else:
            ids = await self._encode_in_turn(_Job(prompt, max_tokens, num_chars), client)
        if not ids:
            raise InvalidRequest("prompt", "0 tokens", "must have at least one token")
        return tuple(ids)

    async def _encode_in_turn(self, job: _Job, client: Hashable) -> list[int]:
        own = list(self._waiting.get(client, ()))
        everybody = [other for jobs in self._waiting.values() for other in jobs]
        for jobs, whose, limit in (
            (own, "this client's", MAX_WAITING_CHARS),
            (everybody, "all clients'", MAX_ALL_WAITING_CHARS),
        ):
            num_chars = sum(other.num_chars for other in jobs if other.is_wanted())
            if num_chars + job.num_chars > limit:
                raise Overloaded(f"{num_chars} characters of {whose} prompts are waiting, the limit is {limit}")
        self._waiting.setdefault(client, deque()).append(job)
        self._start_next()
        return await job.ids

    def _start_next(self) -> None:
        while self._waiting and not self._is_busy:
            client = next(iter(self._waiting))
            jobs = self._waiting.pop(client)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # behind the others
            if job.is_wanted():
                self._start(job)

    def _start(self, job: _Job) -> None:
        self._is_busy = True
        loop = asyncio.get_running_loop()
        work = self._thread.submit(_encode, self._tokenizer, job.prompt, job.max_tokens, job.is_wanted)

        def on_done(work: Future[list[int]]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the requests with it
                loop.call_soon_threadsafe(self._finish, job, work)

        work.add_done_callback(on_done)

    def _finish(self, job: _Job, work: Future[list[int]]) -> None:
        self._is_busy = False
        if job.is_wanted():
            error = work.exception()
            if error is not None:
                job.ids.set_exception(error)
            else:
                job.ids.set_result(work.result())
        self._start_next()


def _encode(
    tokenizer: Tokenizer,
    prompt: TextPrompt | ChatPrompt,
    max_tokens: int,
    is_wanted: Callable[[], bool] = lambda: True,
) -> list[int]:
    if isinstance(prompt, ChatPrompt):
        text, add_special_tokens = tokenizer.render_chat(prompt.messages), False  # the template writes them
    else:
        text, add_special_tokens = prompt.text, True
    if len(text) > max_tokens * _PROBABLE_CHARS:
        _check_pieces(tokenizer, text, max_tokens, is_wanted)
    ids = tokenizer.encode(text, add_special_tokens) if is_wanted() else []
    _check_len(len(ids), max_tokens)
    return ids


def _check_pieces(tokenizer: Tokenizer, text: str, max_tokens: int, is_wanted: Callable[[], bool]) -> None:
    """Raise InvalidRequest as soon as the pieces so far have more than `max_tokens` tokens for certain.

    A cut can add tokens: a token that it divides becomes at most as many as it has bytes, and the text near
    the cut may be tokenised differently. `slack` allows for both.
    """
    slack = tokenizer.max_token_bytes + _CUT_SLACK
    num_tokens = 0
    num_chars = min(max(2 * max_tokens, _MIN_PIECE_CHARS), _MAX_PIECE_CHARS)
    for piece in _pieces(text, num_chars, tokenizer.max_token_bytes):
        if not is_wanted():
            return
        num_tokens += max(tokenizer.count_tokens(piece) - slack, 0)
        if num_tokens > max_tokens:
            raise _too_long(f"more than {max_tokens} tokens", max_tokens)


def _pieces(text: str, num_chars: int, max_token_chars: int) -> Iterator[str]:
    """Yield a text in pieces of about `num_chars`, cut before a single space if one is near.

    Never cut inside white space or shortly before a long run of it: in some tokenizers one token takes the whole run,
    and a cut within that token would leave the run to be counted.
    """
    start = 0
    while start < len(text):
        end = start + num_chars
        while end < len(text):
            window = end, end + _CUT_WINDOW
            found = _BETWEEN_WORDS.search(text, *window) or _ANYWHERE.search(text, *window)
            if found is None:
                end += _CUT_WINDOW
                continue
            end = found.start()
            space = _LONG_SPACE.search(text, end, end + max_token_chars + 33)
            if space is None:
                break
            end = space.end()
        yield text[start:end]
        start = end


def _num_chars(prompt: TextPrompt | ChatPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(message["content"]) + _MESSAGE_CHARS for message in prompt.messages)


def _check_len(num_tokens: int, max_tokens: int) -> None:
    if num_tokens > max_tokens:
        raise _too_long(f"{num_tokens} tokens", max_tokens)


def _too_long(value: str, max_tokens: int) -> InvalidRequest:
    return InvalidRequest("prompt", value, f"at most {max_tokens} fit the context with room for an answer")


def _lower_priority() -> None:
    thread_id = threading.get_native_id()  # on Linux each thread has its own priority
    with suppress(OSError):  # a sandbox may forbid it; the thread works without it too
        os.setpriority(os.PRIO_PROCESS, thread_id, os.getpriority(os.PRIO_PROCESS, thread_id) + _NICENESS)
