"""Workers that compute nothing: they take as long as a forward would, and accept drafts as often as they are told.

The right next token is always RIGHT. A draft that would be accepted is one, another is WRONG, and the verifier puts
OTHER in its place; whether a draft is right depends on its request and position alone, so that every mode is asked
the same questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minedraft.carriers import ChannelCommand, ChannelEnd
from minedraft.errors import WorkerLost
from minedraft.messages import (
    Branch,
    DraftCommand,
    DraftReply,
    DraftSpan,
    Features,
    LinkStats,
    Proposal,
    Tensor,
    Timing,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
    WorkerInfo,
)
from minedraft.sim.acceptance import AcceptanceLaw, chance_at
from minedraft.sim.devices import SimulatedDevice
from minedraft.sim.forwards import Effort, Forward
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role, ScoreKind

RIGHT, WRONG, OTHER = 1, 2, 3
FEATURE_LAYERS, FEATURE_SIZE = (0,), 1
"""What a simulated head reads of the target; nothing is computed with it."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A model on a device, and the KV blocks that it has there."""

    device: SimulatedDevice
    forward: Forward
    num_blocks: int = 1 << 20
    block_size: int = 16


class _SimulatedLink:
    """What both simulated workers have of a link."""

    role: Role
    is_wide = False

    def __init__(self, seat: Seat, max_cores: tuple[int, ...] = (), draft_method: DraftMethod | None = None) -> None:
        has_features = draft_method in (None, DraftMethod.EAGLE)
        self.info = WorkerInfo(
            role=self.role,
            epoch=seat.device.rng.getrandbits(32) | 1,
            protocol_version=PROTOCOL_VERSION,
            vocab_size=16,
            vocab_fingerprint="simulated",
            num_blocks=seat.num_blocks,
            block_size=seat.block_size,
            max_model_len=1 << 20,
            model_name="simulated",
            device="simulated",
            dtype="bfloat16",
            draft_method=draft_method,
            cores=max_cores[-1:],
            max_cores=max_cores,
            feature_layers=FEATURE_LAYERS if has_features else (),
            feature_size=FEATURE_SIZE if has_features else 0,
        )
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.on_channel_failure: Callable[[str], None] = _ignore
        self._seat = seat

    def give_up(self, cause: str) -> None:
        """Declare the link dead; commands under way end with WorkerLost."""
        self.lost_error = WorkerLost(f"{self.role.value}: {cause}")
        self.lost.set()

    async def prepare_channel(self, command: ChannelCommand) -> ChannelEnd | None:
        return None

    async def release(self, request_ids: Sequence[int]) -> int:
        return self.info.num_blocks

    async def configure(self, cores: Sequence[int]) -> Timing:
        self.is_wide = len(cores) > 1
        return Timing()

    async def close(self) -> None:
        pass

    async def _run(self, work: Effort) -> Timing:
        """Take the time of a command.

        Raises:
            WorkerLost: the worker was lost before the end.
        """
        timing = await self._seat.device.run(work)
        if self.lost_error is not None:
            raise self.lost_error
        return timing


class SimulatedVerifier(_SimulatedLink):
    """A `Verifier` that takes the time of a forward and judges drafts by what they are."""

    role = Role.VERIFIER

    def curtail(self, number: int) -> None:
        """Do nothing: simulated rounds have one step each."""

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        num_prompt = sum([len(span.tokens) for span in command.spans if len(span.tokens) > 1])
        num_rows = num_prompt + sum([len(s.drafts) + (len(s.tokens) <= 1) for s in command.spans])
        num_kv = sum([span.prefix_len for span in command.spans])
        work = self._seat.forward.work(num_rows, num_kv, num_prompt=num_prompt, is_wide=self.is_wide)
        timing = await self._run(work)
        return VerifyReply(command.round, tuple(map(_judge, command.spans)), timing, self.info.num_blocks)


class SimulatedDrafter(_SimulatedLink):
    """A `Drafter` that takes the time of its forwards; each of its drafts is right with the probability given."""

    role = Role.DRAFTER

    def __init__(
        self,
        seat: Seat,
        acceptance: AcceptanceLaw,
        draft_method: DraftMethod = DraftMethod.MODEL,
        seed: int = 0,
        max_cores: tuple[int, ...] = (),
    ) -> None:
        super().__init__(seat, max_cores, draft_method)
        self._acceptance = acceptance
        self._seed = seed
        self._kinds: dict[int, int] = {}

    async def draft(self, command: DraftCommand) -> DraftReply:
        timing = await self._run(self._work(command.spans))
        proposals = tuple([self._propose(span, command.scores) for span in command.spans])
        return DraftReply(command.round, proposals, timing, self.info.num_blocks)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        """Cache tokens; for spans that run ahead, prepare the way in which every draft is accepted."""
        timing = await self._run(self._work(command.spans))
        proposals = tuple(self._run_ahead(span) for span in command.spans if span.ahead is not None)
        return DraftReply(command.round, proposals, timing, self.info.num_blocks)

    def _work(self, spans: Sequence[DraftSpan]) -> Effort:
        """Return what a command's forwards take: one that caches the tokens, and one for each further draft."""
        num_kv = sum([span.prefix_len for span in spans])
        # A token or two in the span of a draft were committed since the last one; they count as one row, as in
        # `theory.costs.Costs.draft`. More are a prompt's.
        num_prompt = sum([len(span.tokens) for span in spans if span.spec is not None or not span.draft_len])
        num_rows = num_prompt + sum([span.spec is None and span.draft_len > 0 for span in spans])
        forward, is_wide = self._seat.forward, self.is_wide
        works = [forward.work(num_rows, num_kv, num_prompt=num_prompt, is_wide=is_wide)]
        lens = [span.draft_len for span in spans]
        for step in range(1, max(lens)):
            works.append(forward.work(sum([length > step for length in lens]), num_kv, is_wide=is_wide))
        seconds = sum([work.seconds for work in works])
        return Effort(seconds, sum([work.seconds * work.reading for work in works]) / seconds if seconds else 0.0)

    def _propose(self, span: DraftSpan, kind: ScoreKind) -> Proposal:
        committed_len = span.prefix_len + len(span.tokens)
        drafts = self._drafts(span, committed_len)
        # The drafter knows how sure each draft is, however it turns out.
        scores = () if kind is ScoreKind.NONE else tuple([rate for _, rate in drafts])
        return Proposal(span.request_id, committed_len, tuple([token for token, _ in drafts]), scores=scores)

    def _run_ahead(self, span: DraftSpan) -> Proposal:
        num_drafts = span.ahead.num_drafts if span.ahead is not None else 0
        committed_len = span.committed_len + num_drafts + 1
        # The token after the drafts is guessed as a draft would be: the verifier says RIGHT there.
        guess, _ = self._token(span, committed_len - 1, num_drafts)
        drafts = tuple([token for token, _ in self._drafts(span, committed_len)])
        return Proposal(span.request_id, committed_len, drafts, branch=Branch(num_drafts, guess))

    def _drafts(self, span: DraftSpan, committed_len: int) -> list[tuple[int, float]]:
        return [self._token(span, committed_len + i, i) for i in range(span.draft_len)]

    def _token(self, span: DraftSpan, position: int, num_before: int) -> tuple[int, float]:
        """Return a draft, and how likely it was to be right."""
        if span.spec is not None:
            self._kinds[span.request_id] = span.tokens[0]
        place = chance_at(self._seed, span.request_id, position, 1)
        rate = self._acceptance(self._kinds.get(span.request_id, 0), num_before, place)
        return (RIGHT if chance_at(self._seed, span.request_id, position) < rate else WRONG), rate


def _judge(span: VerifySpan) -> Verdict:
    if not span.sample:
        return Verdict(span.request_id, span.committed_len, 0, (), features=_features(span, 0))
    accepted_len = next((i for i, draft in enumerate(span.drafts) if draft != RIGHT), len(span.drafts))
    bonus = RIGHT if accepted_len == len(span.drafts) else OTHER
    tokens = (*span.drafts[:accepted_len], bonus)
    return Verdict(span.request_id, span.committed_len, accepted_len, tokens, features=_features(span, accepted_len))


def _features(span: VerifySpan, accepted_len: int) -> Features | None:
    if not span.wants_features:
        return None
    num_tokens = span.committed_len + accepted_len - span.prefix_len
    return Features(span.prefix_len, Tensor("bfloat16", (num_tokens, FEATURE_SIZE)))


def _ignore(cause: str) -> None:
    pass
