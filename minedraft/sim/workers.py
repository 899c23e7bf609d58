"""Workers that compute nothing: they take as long as a forward would, and accept drafts as often as they are told.

The right next token is always RIGHT. A draft that would be accepted is one, another is WRONG, and the verifier puts
OTHER in its place; whether a draft is right depends on its request and position alone, so that every mode is asked
the same questions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minedraft.carriers import ChannelCommand, ChannelEnd
from minedraft.errors import WorkerLost
from minedraft.messages import (
    Branch,
    DraftCommand,
    DraftReply,
    DraftSpan,
    LinkStats,
    Proposal,
    Timing,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
    WorkerInfo,
)
from minedraft.sim.forwards import Forward
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role

RIGHT, WRONG, OTHER = 1, 2, 3

AcceptanceLaw = Callable[[int, int], float]
"""The probability that a draft is accepted, given its request's kind (its first prompt token) and how many accepted
drafts go before it in its round."""


@dataclass
class SimulatedDevice:
    """One device: a command at a time, slower while the other device computes, if they share memory.

    Attributes:
        link_s: the time that a message takes to it, and one from it.
        noise: standard deviation of a command's time, as a part of it.
    """

    forward: Forward
    rng: random.Random
    link_s: float = 0.0
    noise: float = 0.0
    other: SimulatedDevice | None = None
    _is_busy: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)  # replaced at each change of `_is_busy`
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, seconds: Callable[[bool], float]) -> Timing:
        """Take the time of a command, given whether the other device computes all the while."""
        loop = asyncio.get_running_loop()
        if self.link_s:
            await asyncio.sleep(self.link_s)
        received_s = loop.time()
        async with self._lock:
            start_s = loop.time()
            self._set_busy(True)
            scale = max(self.rng.gauss(1.0, self.noise), 0.3) if self.noise else 1.0
            await self._compute(scale * seconds(False), scale * seconds(True))
            self._set_busy(False)
            end_s = loop.time()
        if self.link_s:
            await asyncio.sleep(self.link_s)
        queue_ns, busy_ns, start_ns = (round(1e9 * value) for value in (start_s - received_s, end_s - start_s, start_s))
        return Timing(queue_ns=queue_ns, forward_ns=busy_ns, busy_ns=busy_ns, start_ns=start_ns)

    async def _compute(self, alone_s: float, contended_s: float) -> None:
        other, loop = self.other, asyncio.get_running_loop()
        if other is None or alone_s == contended_s:
            await asyncio.sleep(alone_s)
            return
        part = 1.0  # that is left
        while part > 0:
            whole_s, start_s = contended_s if other._is_busy else alone_s, loop.time()
            try:
                async with asyncio.timeout(part * whole_s):
                    await other._changed.wait()
            except TimeoutError:
                return
            part -= (loop.time() - start_s) / whole_s

    def _set_busy(self, is_busy: bool) -> None:
        self._is_busy = is_busy
        self._changed.set()
        self._changed = asyncio.Event()


class _SimulatedLink:
    """What both simulated workers have of a link."""

    role: Role

    def __init__(
        self, device: SimulatedDevice, num_blocks: int, block_size: int, max_cores: tuple[int, ...] = ()
    ) -> None:
        self.info = WorkerInfo(
            role=self.role,
            epoch=device.rng.getrandbits(32) | 1,
            protocol_version=PROTOCOL_VERSION,
            vocab_size=16,
            vocab_fingerprint="simulated",
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=1 << 20,
            model_name="simulated",
            device="simulated",
            dtype="bfloat16",
            draft_method=DraftMethod.MODEL if self.role is Role.DRAFTER else None,
            cores=max_cores[-1:],
            max_cores=max_cores,
        )
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.on_channel_failure: Callable[[str], None] = _ignore
        self._device = device

    def give_up(self, cause: str) -> None:
        """Declare the link dead; commands under way end with WorkerLost."""
        self.lost_error = WorkerLost(f"{self.role.value}: {cause}")
        self.lost.set()

    async def prepare_channel(self, command: ChannelCommand) -> ChannelEnd | None:
        return None

    async def release(self, request_ids: Sequence[int]) -> int:
        return self.info.num_blocks

    async def configure(self, cores: Sequence[int]) -> Timing:
        return Timing()

    async def close(self) -> None:
        pass

    async def _run(self, seconds: Callable[[bool], float]) -> Timing:
        """Take the time of a command.

        Raises:
            WorkerLost: the worker was lost before the end.
        """
        timing = await self._device.run(seconds)
        if self.lost_error is not None:
            raise self.lost_error
        return timing


class SimulatedVerifier(_SimulatedLink):
    """A `Verifier` that takes the time of a forward and judges drafts by what they are."""

    role = Role.VERIFIER
    is_wide = False

    async def configure(self, cores: Sequence[int]) -> Timing:
        self.is_wide = len(cores) > 1
        return Timing()

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        num_rows = sum(max(len(span.tokens), 1) + len(span.drafts) for span in command.spans)
        num_kv = sum(span.prefix_len for span in command.spans)
        forward, is_wide = self._device.forward, self.is_wide
        timing = await self._run(lambda busy: forward.seconds(num_rows, num_kv, is_contended=busy, is_wide=is_wide))
        return VerifyReply(command.round, tuple(map(_judge, command.spans)), timing, self.info.num_blocks)


class SimulatedDrafter(_SimulatedLink):
    """A `Drafter` that takes the time of its forwards; each of its drafts is right with the probability given."""

    role = Role.DRAFTER

    def __init__(
        self, device: SimulatedDevice, acceptance: AcceptanceLaw, num_blocks: int, block_size: int, seed: int = 0
    ) -> None:
        super().__init__(device, num_blocks, block_size)
        self._acceptance = acceptance
        self._seed = seed
        self._kinds: dict[int, int] = {}

    async def draft(self, command: DraftCommand) -> DraftReply:
        timing = await self._run(lambda busy: self._seconds(command.spans, busy))
        return DraftReply(command.round, tuple(map(self._propose, command.spans)), timing, self.info.num_blocks)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        """Cache tokens; for spans that run ahead, prepare the way in which every draft is accepted."""
        timing = await self._run(lambda busy: self._seconds(command.spans, busy))
        proposals = tuple(self._run_ahead(span) for span in command.spans if span.ahead is not None)
        return DraftReply(command.round, proposals, timing, self.info.num_blocks)

    def _seconds(self, spans: Sequence[DraftSpan], is_contended: bool) -> float:
        """Return the time of a command's forwards: one that caches the tokens, and one for each further draft."""
        num_kv = sum(span.prefix_len for span in spans)
        forward = self._device.forward
        total_s = forward.seconds(sum(len(span.tokens) for span in spans), num_kv, is_contended=is_contended)
        for step in range(1, max(span.draft_len for span in spans)):
            num_rows = sum(span.draft_len > step for span in spans)
            total_s += forward.seconds(num_rows, num_kv, is_contended=is_contended)
        return total_s

    def _propose(self, span: DraftSpan) -> Proposal:
        committed_len = span.prefix_len + len(span.tokens)
        return Proposal(span.request_id, committed_len, self._drafts(span, committed_len))

    def _run_ahead(self, span: DraftSpan) -> Proposal:
        num_drafts = span.ahead.num_drafts if span.ahead is not None else 0
        committed_len = span.committed_len + num_drafts + 1
        # The token after the drafts is guessed as a draft would be: the verifier says RIGHT there.
        guess = self._token(span, committed_len - 1, num_drafts)
        drafts = self._drafts(span, committed_len)
        return Proposal(span.request_id, committed_len, drafts, branch=Branch(num_drafts, guess))

    def _drafts(self, span: DraftSpan, committed_len: int) -> tuple[int, ...]:
        return tuple(self._token(span, committed_len + i, i) for i in range(span.draft_len))

    def _token(self, span: DraftSpan, position: int, num_before: int) -> int:
        if span.spec is not None:
            self._kinds[span.request_id] = span.tokens[0]
        rate = self._acceptance(self._kinds.get(span.request_id, 0), num_before)
        return RIGHT if _draw(self._seed, span.request_id, position) < rate else WRONG


def _judge(span: VerifySpan) -> Verdict:
    if not span.sample:
        return Verdict(span.request_id, span.committed_len, 0, ())
    accepted_len = next((i for i, draft in enumerate(span.drafts) if draft != RIGHT), len(span.drafts))
    bonus = RIGHT if accepted_len == len(span.drafts) else OTHER
    return Verdict(span.request_id, span.committed_len, accepted_len, (*span.drafts[:accepted_len], bonus))


def _draw(seed: int, request_id: int, position: int) -> float:
    """Return a number in [0, 1) that depends on its arguments alone (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + request_id * 0xD1B54A32D192ED03 + position * 0x8CB92BA72F3D8DD7 + 1) & mask
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return ((value ^ (value >> 31)) >> 11) / (1 << 53)


def _ignore(cause: str) -> None:
    pass
