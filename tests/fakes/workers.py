"""Workers without a model: the target's next token is a fixed function of the whole prefix.

Everything else is the product's own: commands and replies go through the real codecs, the real request table
checks the spans, each round runs at most once, the real pool counts blocks, and a command that a real worker
refuses is refused here with the same error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from minedraft.errors import MineDraftError, WorkerLost
from minedraft.messages import (
    Branch,
    DraftCommand,
    DraftReply,
    DraftSpan,
    Features,
    LinkStats,
    Proposal,
    Timing,
    TokenLogprobs,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
    WorkerInfo,
)
from minedraft.types import PROTOCOL_VERSION, Batch, DraftMethod, Role
from minedraft_workers.kernels.tables import BlockTables
from minedraft_workers.request_table import RequestTable
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.following import Follower
from minedraft_workers.rounds.round_log import RoundLog
from minedraft_workers.sequence import HeldBranch, SequenceState
from tests.fakes import features
from tests.fakes.loopback import deliver_draft, deliver_verify

VOCAB_SIZE = 97
EPOCH = 7


def next_token(prefix: Sequence[int]) -> int:
    """Return the fake target's token after `prefix`."""
    return (sum((i + 1) * t for i, t in enumerate(prefix)) * 31 + len(prefix)) % VOCAB_SIZE


def continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def is_fifth(prefix_len: int) -> bool:
    """Choose some of the prefixes; see `FakeDrafter`."""
    return prefix_len % 5 == 0


class FakeKv:
    """KV of one worker: the real table of requests, and blocks that grow all together or not at all."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.tables = BlockTables((), num_blocks, block_size)
        self.pool = self.tables.pool
        self.requests = RequestTable()
        self.tokens: dict[int, list[int]] = {}  # of each live request, for tests to inspect

    def append(
        self, spans: Sequence[tuple[DraftSpan | VerifySpan, Sequence[int]]], num_without: int = 0
    ) -> list[SequenceState]:
        """Cache the tokens of each span, but `num_without` of a request, and reserve room for the tokens beside it.
        Raise before any change."""
        states = [self.requests.find(span) for span, _ in spans]
        for state, (span, _) in zip(states, spans, strict=True):
            if isinstance(span, DraftSpan):
                self._settle_branches(state, span.branch)
        self.tables.resize(
            [(span.request_id, span.prefix_len + len(span.tokens) + len(more) - num_without) for span, more in spans]
        )
        for state, (span, _) in zip(states, spans, strict=True):
            state.replace_from(span.prefix_len, span.tokens)
            self.tokens[span.request_id] = state.tokens
        self.requests.keep(states)
        return states

    def fork(self, request_id: int, prefix_len: int, length: int) -> int:
        """Return a fork of the request, with room for `length` tokens."""
        fork = self.tables.fork(request_id, prefix_len)
        self.tables.resize([(fork, length)])
        return fork

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self.requests.forget(request_id)
            self.tokens.pop(request_id, None)
            self.tables.release(request_id)

    def _settle_branches(self, state: SequenceState, branch: int) -> None:
        if branch:
            self.tables.adopt(state.request_id, state.branches[branch - 1].kv_id)
        else:
            self.tables.drop_forks(state.request_id)
        state.take_branch(branch)


class _FakeWorker:
    """The base of both fakes. Every command raises `error` once it is set, as a link does; a WorkerLost also marks
    the link as lost. `refuse` is called with each command and may raise any error that an actor may raise."""

    role: Role

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int, vocab_size: int) -> None:
        self.info = WorkerInfo(
            role=self.role,
            epoch=EPOCH,
            protocol_version=PROTOCOL_VERSION,
            vocab_size=vocab_size,
            vocab_fingerprint="fake",
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            model_name="fake",
            device="none",
            dtype="none",
            draft_method=DraftMethod.MODEL if self.role is Role.DRAFTER else None,
        )
        self.kv = FakeKv(num_blocks, block_size)
        self.cores: list[tuple[int, ...]] = []  # given by configure, in order
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.error: MineDraftError | None = None
        self.is_back = False  # a handshake succeeds after a loss
        self.refuse: Callable[[DraftCommand | VerifyCommand], None] = lambda command: None
        self.hold: Callable[[], asyncio.Future[None]] | None = None
        self._log: RoundLog[bool] = RoundLog(EPOCH)

    def renew(self) -> None:
        """Do what another handshake does: begin a new epoch with nothing cached."""
        self.kv = FakeKv(self.info.num_blocks, self.info.block_size)
        self._log.begin_epoch()
        self.info = replace(self.info, epoch=self._log.epoch)
        self.lost, self.lost_error, self.error = asyncio.Event(), None, None

    def give_up(self, cause: str) -> None:
        if self.lost_error is None:
            self.lost_error = self.error = WorkerLost(f"{self.role.value}: {cause}")
            self.lost.set()

    async def release(self, request_ids: Sequence[int]) -> int:
        await self._arrive()
        self.kv.release(request_ids)
        return self.kv.pool.num_free

    async def configure(self, cores: Sequence[int]) -> Timing:
        await self._arrive()
        self.cores.append(tuple(cores))
        return Timing()

    async def close(self) -> None:
        self.give_up("closed here")

    async def _arrive(self) -> None:
        if self.hold is not None:
            await self.hold()
        await asyncio.sleep(0)
        if isinstance(self.error, WorkerLost):
            self.give_up(str(self.error))
        if self.error is not None:
            raise self.error

    def _once(self, method: str, command: DraftCommand | VerifyCommand) -> None:
        assert self._log.find(method, command.round) is None, "the pipeline sends each round once"
        self._log.store(method, command.round, True)


class FakeVerifier(_FakeWorker):
    """Executes verify commands immediately; `hold` makes the async forms wait for permission."""

    role = Role.VERIFIER

    def __init__(
        self, num_blocks: int = 64, block_size: int = 4, max_model_len: int = 128, vocab_size: int = VOCAB_SIZE
    ) -> None:
        super().__init__(num_blocks, block_size, max_model_len, vocab_size)
        self.info = replace(self.info, feature_layers=features.LAYERS, feature_size=1)
        self.commands: list[VerifyCommand] = []
        self._turns = {batch: asyncio.Lock() for batch in Batch}
        self._follower = Follower(self._run, lambda released: self.kv.release(released))

    def curtail(self, number: int) -> None:
        self._follower.curtail(self.info.epoch, number)

    def execute(self, command: VerifyCommand) -> VerifyReply:
        self._once("verify", command)
        return deliver_verify(command, self.info, self.run)

    def run(self, command: VerifyCommand) -> VerifyReply:
        """Do what the device thread does; may raise one of REFUSALS."""
        verdicts = self._follower.verify(command).rows
        return VerifyReply(command.round, verdicts, Timing(), self.kv.pool.num_free)

    def _run(self, command: VerifyCommand) -> Work[Verdict]:
        self.refuse(command)
        self.commands.append(command)
        self.kv.release(command.released)
        states = self.kv.append([(span, span.drafts) for span in command.spans])
        verdicts = [self._judge(state, span) for state, span in zip(states, command.spans, strict=True)]
        return Work(tuple(verdicts))

    def _judge(self, state: SequenceState, span: VerifySpan) -> Verdict:
        committed_len = len(state.tokens)
        if not span.sample:
            return Verdict(span.request_id, committed_len, 0, (), features=self._features(state, span))
        tokens = list(state.tokens)
        for draft in (*span.drafts, None):
            tokens.append(next_token(tokens))
            if draft != tokens[-1]:
                break
        state.tokens.extend(tokens[committed_len:-1])
        accepted_len, chosen = len(tokens) - committed_len - 1, tuple(tokens[committed_len:])
        logprobs = _logprobs(chosen, state.spec.sampling.logprobs)
        return Verdict(
            span.request_id,
            committed_len,
            accepted_len,
            chosen,
            logprobs,
            features=self._features(state, span),
            is_end=chosen[-1] in state.spec.stop_ids,
        )

    def _features(self, state: SequenceState, span: VerifySpan) -> Features | None:
        return features.features_of(state.tokens, span.prefix_len) if span.wants_features else None

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        async with self._turns[command.round.batch]:  # a round and the one that follows it arrive in their order
            await self._arrive()
            return self.execute(command)


def _logprobs(tokens: Sequence[int], num_top: int | None) -> tuple[TokenLogprobs, ...]:
    """Return made-up numbers for the tokens, with each token as its own best alternative."""
    if num_top is None:
        return ()
    return tuple(TokenLogprobs(-0.5, (token,) * min(num_top, 1), (-0.5,) * min(num_top, 1)) for token in tokens)


def _num_fed(span: DraftSpan) -> int:
    """Return how many tokens a span caches beside its own: its drafts but the last, after a branch's token."""
    return span.draft_len - (span.ahead is None) if span.draft_len else 0


class FakeDrafter(_FakeWorker):
    """Proposes the target's next tokens, and a wrong one where `is_right(prefix_len)` is false. Where
    `is_looked_up(prefix_len)` is true, they count as looked up: it caches none of them. With `reads_features` it
    refuses a span without the true features of its tokens."""

    role = Role.DRAFTER

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        max_model_len: int = 128,
        is_right: Callable[[int], bool] = lambda prefix_len: prefix_len % 3 != 0,
        vocab_size: int = VOCAB_SIZE,
        reads_features: bool = False,
        is_looked_up: Callable[[int], bool] = lambda prefix_len: False,
    ) -> None:
        super().__init__(num_blocks, block_size, max_model_len, vocab_size)
        if reads_features:
            self.info = replace(self.info, feature_layers=features.LAYERS, feature_size=features.SIZE)
        self.is_right = is_right
        self.is_looked_up = is_looked_up
        self.commands: list[DraftCommand] = []

    def execute(self, command: DraftCommand, method: str = "draft") -> DraftReply:
        self._once(method, command)
        return deliver_draft(command, self.info, self.run)

    def run(self, command: DraftCommand) -> DraftReply:
        """Do what the device thread does; may raise one of REFUSALS."""
        self.refuse(command)
        self.commands.append(command)
        self.kv.release(command.released)
        reads_features = bool(self.info.feature_size)
        states = self.kv.append([(span, range(_num_fed(span))) for span in command.spans], int(reads_features))
        proposals: list[Proposal] = []
        for state, span in zip(states, command.spans, strict=True):
            if span.ahead is not None:
                proposals += self._run_ahead(state, span, span.ahead.num_drafts, span.ahead.num_branches)
                continue
            committed_len = len(state.tokens)
            if reads_features:
                features.check_features(span, state.tokens)
            for _ in range(span.draft_len):
                state.tokens.append(self._propose(state.tokens))
            if span.draft_len:
                is_looked_up = self.is_looked_up(committed_len)
                source = DraftMethod.NGRAM if is_looked_up else DraftMethod.MODEL
                drafts = tuple(state.tokens[committed_len:])
                proposals.append(Proposal(span.request_id, committed_len, drafts, source=source))
                # The last draft is never fed back, and what an own state was fed back with is computed again.
                del state.tokens[committed_len if reads_features or is_looked_up else -1 :]
        return DraftReply(command.round, tuple(proposals), Timing(), self.kv.pool.num_free)

    def _run_ahead(
        self, state: SequenceState, span: DraftSpan, num_drafts: int, num_branches: int
    ) -> Sequence[Proposal]:
        """Prepare the branch with all drafts, then those where the target takes another token than a draft, and last
        some that cannot come true."""
        start = len(state.tokens) - num_drafts
        committed, in_flight = state.tokens[:start], state.tokens[start:]
        branches = [Branch(num_drafts, self._propose(state.tokens))]
        for index, draft in enumerate(in_flight):
            right = next_token([*committed, *in_flight[:index]]) % self.info.vocab_size
            branches.append(Branch(index, right if right != draft else (right + 1) % self.info.vocab_size))
        proposals, held = [], []
        for branch in branches[:num_branches]:
            lead = [*in_flight[: branch.accepted_len], branch.token]
            tokens = [*committed, *lead]
            for _ in range(span.draft_len):
                tokens.append(self._propose(tokens))
            drafts = tuple(tokens[start + len(lead) :])
            proposals.append(Proposal(span.request_id, start + len(lead), drafts, branch=branch))
            cached = tokens[:-1]
            if not held and len(proposals) == 1:
                first = cached
            else:
                fork = self.kv.fork(span.request_id, start + branch.accepted_len, len(cached))
                held.append(HeldBranch(fork, start, tuple(cached[start:])))
        state.branches = held
        state.replace_from(start, first[start:])
        return proposals

    def _propose(self, tokens: Sequence[int]) -> int:
        """Return a token that both models have: a real drafter learns the target's vocabulary size in the handshake."""
        right = next_token(tokens)
        return (right if self.is_right(len(tokens)) else right + 1) % min(VOCAB_SIZE, self.info.vocab_size)

    async def draft(self, command: DraftCommand) -> DraftReply:
        await self._arrive()
        return self.execute(command, "draft")

    async def prefill(self, command: DraftCommand) -> DraftReply:
        await self._arrive()
        return self.execute(command, "prefill")
