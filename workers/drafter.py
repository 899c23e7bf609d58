"""The drafter: proposes tokens with a draft model, or with the prompt's own n-grams.

Drafting is `draft_len` forward passes in a row: the first packs what each request has not cached yet,
each later one a single token a request. The last draft is never fed back, so after a round the KV
holds the committed tokens and all drafts but the last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from minedraft_workers.model import Executor, ForwardSpan
from minedraft_workers.ngram import PromptLookup
from minedraft_workers.request_table import RequestTable
from minedraft_workers.runtime import Work
from minedraft_workers.sampling import DEFAULT_TOP_M, choose_drafts
from minedraft_workers.sequence import SequenceState
from minedraft_workers.transport import InlineChannel, TokenChannel

from minedraft.blocks import BlocksExhausted
from minedraft.types import Acceptance, DraftCommand, Proposal, TruncatedQ, WorkerInfo

logger = logging.getLogger("minedraft.drafter")


@dataclass(slots=True)
class DraftRow:
    """One request in the making of a round: `state` still has its old tokens until they are cached.

    drafts: proposed so far. q_ids, q_probs: int32 and float32 [m] of each draft, under REJECTION only.
    """

    state: SequenceState
    prefix_len: int
    tokens: Sequence[int]
    draft_len: int
    drafts: list[int] = field(default_factory=list)
    q_ids: list[torch.Tensor] = field(default_factory=list)
    q_probs: list[torch.Tensor] = field(default_factory=list)

    @property
    def committed_len(self) -> int:
        return self.prefix_len + len(self.tokens)

    @property
    def is_done(self) -> bool:
        return len(self.drafts) >= self.draft_len


class Proposer(Protocol):
    """Where draft tokens come from."""

    @property
    def num_free_blocks(self) -> int: ...

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens (also in `state.tokens`) and fill in its drafts, `draft_len` or fewer.

        Returns:
            Nanoseconds spent in forward passes.

        Raises:
            BlocksExhausted, ProtocolError: the rows cannot be cached; nothing was changed.
        """
        ...

    def release(self, request_id: int) -> None: ...

    def reset(self) -> None: ...


class ModelProposer:
    """Drafts with a small language model."""

    def __init__(self, executor: Executor, top_m: int = DEFAULT_TOP_M) -> None:
        self._executor = executor
        self._top_m = top_m

    @property
    def num_free_blocks(self) -> int:
        return self._executor.num_free_blocks

    def propose(self, rows: Sequence[DraftRow]) -> int:
        start_ns = time.perf_counter_ns()
        logits = self._executor.forward(
            [ForwardSpan(row.state.request_id, row.prefix_len, row.tokens, 1 if row.draft_len else 0) for row in rows]
        )
        forward_ns = time.perf_counter_ns() - start_ns
        for row in rows:
            row.state.replace_from(row.prefix_len, row.tokens)
            # The KV of draft i lies at committed_len + i - 1; the last draft has none.
            row.draft_len = min(row.draft_len, self._executor.max_model_len - row.committed_len + 1)
        active = [row for row in rows if row.draft_len]
        while active:
            self._choose(logits, active)
            active = [row for row in active if not row.is_done]
            if not active:
                break
            start_ns = time.perf_counter_ns()
            try:
                logits = self._executor.forward(
                    [
                        ForwardSpan(row.state.request_id, row.committed_len + len(row.drafts) - 1, row.drafts[-1:], 1)
                        for row in active
                    ]
                )
            except BlocksExhausted as error:
                logger.warning("drafting stopped early: %s", error)
                break
            finally:
                forward_ns += time.perf_counter_ns() - start_ns
        for row in rows:
            row.state.tokens.extend(row.drafts[:-1])
        return forward_ns

    def release(self, request_id: int) -> None:
        self._executor.release(request_id)

    def reset(self) -> None:
        self._executor.release_all()

    def _choose(self, logits: torch.Tensor, rows: Sequence[DraftRow]) -> None:
        choice = choose_drafts(
            logits,
            [row.state for row in rows],
            [row.committed_len + len(row.drafts) for row in rows],
            [row.drafts for row in rows],
            self._executor.draft_vocab_ids,
            self._top_m,
        )
        if choice.num_bad:
            logger.warning("the draft model's logits are not finite for %d of %d requests", choice.num_bad, len(rows))
        for index, (row, token) in enumerate(zip(rows, choice.tokens, strict=True)):
            row.drafts.append(token)
            if row.state.spec.acceptance is Acceptance.REJECTION:
                assert choice.q_ids is not None, "a row under REJECTION has a q"
                assert choice.q_probs is not None, "ids and probabilities come together"
                row.q_ids.append(choice.q_ids[index])
                row.q_probs.append(choice.q_probs[index])


class NgramProposer:
    """Drafts from what followed the same words earlier in the text; holds no KV, so it never runs out."""

    def __init__(self, num_blocks: int) -> None:
        self.num_free_blocks = num_blocks
        self._lookups: dict[int, PromptLookup] = {}

    def propose(self, rows: Sequence[DraftRow]) -> int:
        for row in rows:
            state = row.state
            state.replace_from(row.prefix_len, row.tokens)
            if row.draft_len:
                lookup = self._lookups.setdefault(state.request_id, PromptLookup())
                row.drafts = lookup.propose(state.tokens, row.draft_len)
                state.tokens.extend(row.drafts[:-1])
        return 0

    def release(self, request_id: int) -> None:
        self._lookups.pop(request_id, None)

    def reset(self) -> None:
        self._lookups.clear()


class DrafterActor:
    """Executes the Drafter commands, in the device thread."""

    def __init__(self, proposer: Proposer, info: WorkerInfo, channel: TokenChannel | None = None) -> None:
        self.info = info
        self._proposer = proposer
        self._channel = channel or InlineChannel()
        self._requests = RequestTable()

    @property
    def num_free_blocks(self) -> int:
        return self._proposer.num_free_blocks

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        """Free what is released, cache the new tokens, propose. Implements `DraftingActor`."""
        self.release(command.released)
        rows = [
            DraftRow(self._requests.find(span), span.prefix_len, span.tokens, span.draft_len) for span in command.spans
        ]
        forward_ns = self._proposer.propose(rows)
        self._requests.keep(row.state for row in rows)
        asked = [row for row, span in zip(rows, command.spans, strict=True) if span.draft_len]
        return Work(tuple([self._to_proposal(row) for row in asked]), forward_ns)

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        """A draft command whose spans ask for nothing."""
        return self.draft(command)

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._requests.forget(request_id)
            self._proposer.release(request_id)

    def reset(self) -> None:
        self._requests.clear()
        self._proposer.reset()

    def _to_proposal(self, row: DraftRow) -> Proposal:
        q = None
        if row.q_ids:
            pack = self._channel.pack
            q = TruncatedQ(pack(torch.stack(row.q_ids)), pack(torch.stack(row.q_probs)))
        return Proposal(row.state.request_id, row.committed_len, tuple(row.drafts), q)
