"""Requests that kill the verifier: each ends, after so many deaths and no more, and nobody ends with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given, settings

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.errors import ReplaysExhausted, WorkerLost
from minedraft.messages import DraftCommand, VerifyCommand
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason, Mode
from scripts.lib.sink import Collector
from tests.fakes.policies import AnyDraftPolicy
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. fatal_len: computing so many of its tokens kills the verifier; None: it is harmless."""

    prompt: tuple[int, ...]
    num_new: int
    fatal_len: int | None = None

    @property
    def truth(self) -> list[int]:
        return continuation(self.prompt, self.num_new)


@st.composite
def asked(draw: Callable[..., int], *, is_killer: bool) -> Asked:
    """Draw a request of at most 40 tokens; its last token is never computed."""
    prompt_len, num_new = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    salt = draw(st.integers(1, 90))
    prompt = tuple(salt * (i + 1) % 97 for i in range(prompt_len))
    return Asked(prompt, num_new, draw(st.integers(1, prompt_len + num_new - 1)) if is_killer else None)


class Crowd:
    """Requests in a pipeline whose verifier dies of some of them and is replaced each time."""

    def __init__(self, requests: list[Asked], limits: SchedulerLimits, num_blocks: int, seed: int) -> None:
        self.num_deaths = 0
        self.sinks = [Collector() for _ in requests]
        self._requests = requests
        self._killers: dict[int, int] = {}  # by request id, the fatal number of tokens
        self._num_blocks = num_blocks
        self._order = random.Random(seed)
        drafter = FakeDrafter(num_blocks)
        drafter.hold = self._pause
        policy = AnyDraftPolicy(1 + seed % 5)
        self.pipeline = CountedPipeline(limits, self._verifier(), drafter, draft_policy=policy, verifier_returns=True)

    async def run(self) -> None:
        """Return when all have ended."""
        async with self.pipeline as pipeline, asyncio.timeout(60):
            for request, sink in zip(self._requests, self.sinks, strict=True):
                new = NewRequest(request.prompt, SamplingParams(max_new_tokens=request.num_new))
                request_id = pipeline.submit(new, sink)
                if request.fatal_len is not None:
                    self._killers[request_id] = request.fatal_len
            replacing = asyncio.create_task(self._replace())
            try:
                await until(lambda: all(sink.done.is_set() for sink in self.sinks))
            finally:
                replacing.cancel()

    async def _replace(self) -> None:
        while True:
            await until(lambda: not self.pipeline.has_verifier)
            self.num_deaths += 1
            self.pipeline.gain_verifier(self._verifier())

    def _verifier(self) -> FakeVerifier:
        verifier = FakeVerifier(self._num_blocks)
        verifier.hold = self._pause

        def die_of(command: DraftCommand | VerifyCommand) -> None:
            for span in command.spans:
                computed_len = span.prefix_len + len(span.tokens) + len(span.drafts)
                if computed_len >= self._killers.get(span.request_id, 1 << 30):
                    verifier.give_up("killed")
                    raise WorkerLost("verifier: killed")

        verifier.refuse = die_of
        return verifier

    async def _pause(self) -> None:
        for _ in range(self._order.randrange(4)):
            await asyncio.sleep(0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    harmless=st.lists(asked(is_killer=False), max_size=6),
    killers=st.lists(asked(is_killer=True), min_size=1, max_size=3),
    mode=st.sampled_from(Mode),
    max_batch_size=st.integers(1, 4),
    draft_len=st.integers(1, 4),
    prefill_chunk=st.sampled_from([3, 8, 64]),
    num_blocks=st.integers(12, 64),
    max_replays=st.integers(1, 3),
    seed=st.integers(0, 1 << 30),
)
def test_of_any_crowd_only_the_killers_end_and_each_after_a_bounded_number_of_deaths(
    harmless: list[Asked],
    killers: list[Asked],
    mode: Mode,
    max_batch_size: int,
    draft_len: int,
    prefill_chunk: int,
    num_blocks: int,
    max_replays: int,
    seed: int,
) -> None:
    requests = [*harmless, *killers]
    random.Random(seed).shuffle(requests)
    limits = SchedulerLimits(
        mode, max_batch_size, draft_len, prefill_chunk, max_waiting=16, max_model_len=64, max_replays=max_replays
    )
    crowd = Crowd(requests, limits, num_blocks, seed)
    asyncio.run(crowd.run())
    for request, sink in zip(requests, crowd.sinks, strict=True):
        if request.fatal_len is None:
            assert sink.error is None, "a neighbour of a killer goes on"
            assert (sink.reason, sink.tokens) == (FinishReason.LENGTH, request.truth)
        else:
            assert isinstance(sink.error, ReplaysExhausted), "a killer ends"
            assert sink.tokens == request.truth[: len(sink.tokens)]
    most = len(killers) * (max_replays + 1)
    assert max_replays + len(killers) <= crowd.num_deaths <= most, "one killer costs max_replays + 1 deaths exactly"
    assert crowd.pipeline.counters.causes == {"REPLAYS_EXHAUSTED": len(killers)}
