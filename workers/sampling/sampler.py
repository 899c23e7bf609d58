"""What a worker chooses tokens with: all rows of a call in one native call, all together by torch's operators on a
GPU, or row by row with torch and NumPy.

All follow the same laws and take the same random numbers, so they choose the same tokens, except where the
rounding of a float32 decides. The functions of `acceptance` and `choose` are the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from minedraft.errors import ConfigError, NumericError
from minedraft.types import Acceptance
from minedraft_workers.native.choosing import ChoiceRequest, ChoiceRule, Choices, ChoosingKernels, LogitRows
from minedraft_workers.native.pooled import KernelPool
from minedraft_workers.sampling.acceptance import Outcome, VerifyRow, to_outcome, verify
from minedraft_workers.sampling.batched.drafts import choose_drafts_together
from minedraft_workers.sampling.batched.verdicts import verify_together
from minedraft_workers.sampling.choose import DEFAULT_TOP_M, ChoiceRow, DraftChoice, choose_drafts
from minedraft_workers.sampling.processors import adjust_in_place, is_greedy, needs_adjusting, usable_temperature
from minedraft_workers.sampling.randomness import seed_of_draft
from minedraft_workers.sampling.vocab_columns import Columns, columns_of
from minedraft_workers.sequence import SequenceState

logger = logging.getLogger("minedraft.worker")


class Sampler:
    """The choice of drafts, and the decision about them."""

    def __init__(self, kernels: ChoosingKernels | None = None, *, is_batched: bool = False) -> None:
        """Take the native kernels, used for logits on the CPU; None: torch's operators, on any device.

        is_batched: whether to choose on the CPU as on a GPU, for all rows together: to test it.
        """
        self._kernels = kernels
        self._is_batched = is_batched
        self._adjusted = torch.empty(0, 0)

    @classmethod
    def native(cls, num_threads: int = 1, pool: KernelPool | None = None) -> Self:
        """Return a sampler with native kernels in this pool, or in one of that many threads.

        Raises:
            ConfigError: there are none on this machine.
        """
        return cls(ChoosingKernels(num_threads=num_threads, pool=pool))

    @classmethod
    def best(cls, num_threads: int, pool: KernelPool | None = None) -> Self:
        """Return a sampler with native kernels if this machine has them, otherwise one with torch's operators.
        Arguments as for `native`."""
        try:
            return cls.native(num_threads, pool)
        except ConfigError as error:
            logger.info("tokens are chosen with torch: %s", error.limit)
            return cls()

    def verify(self, logits: torch.Tensor, rows: Sequence[VerifyRow]) -> list[Outcome]:
        """Return the decision for each row; arguments as `acceptance.verify`."""
        if self._is_batched or not logits.is_cpu:
            return verify_together(logits, rows)
        if self._kernels is None:
            return verify(logits, rows)
        columns = columns_of(logits.shape[-1], logits.device)
        spans = [_Span(row.state, len(row.state.tokens), (), row.drafts) for row in rows]
        requests = self._requests(logits, spans, columns, ChoiceRule.ACCEPT)
        for request, row in zip(requests, rows, strict=True):
            if row.drafts and request.rule is ChoiceRule.ACCEPT:
                request.q_ids, request.q_probs = row.q_ids, row.q_probs
        chosen = self._kernels.choose(requests, columns.noise.hashes).tokens
        outcomes, first_row = [], 0
        for row, tokens in zip(rows, chosen, strict=True):
            if tokens:
                outcomes.append(to_outcome(logits, first_row, row, tokens))
            else:
                outcomes.append(Outcome(0, (), error=NumericError.reason))
            first_row += len(row.drafts) + 1
        return outcomes

    def choose_drafts(
        self,
        logits: torch.Tensor,
        rows: Sequence[ChoiceRow],
        draft_vocab_ids: torch.Tensor | None = None,
        top_m: int = DEFAULT_TOP_M,
    ) -> DraftChoice:
        """Return the next draft token of each request; arguments as `choose.choose_drafts`."""
        if self._is_batched or not logits.is_cpu:
            columns = columns_of(logits.shape[-1], logits.device, draft_vocab_ids)
            return choose_drafts_together(logits, rows, columns, top_m)
        # Peaks alone are found by NumPy's argmax, in one pass as fast as the memory.
        if self._kernels is None or all(row.takes_peak for row in rows):
            return choose_drafts(logits, rows, draft_vocab_ids, top_m)
        columns = columns_of(logits.shape[-1], logits.device, draft_vocab_ids)
        spans = [_Span(row.state, row.position, row.drafts, (), row.index) for row in rows]
        requests = self._requests(logits, spans, columns, ChoiceRule.PROPOSE)
        has_q = any(row.state.spec.acceptance is Acceptance.REJECTION for row in rows)
        choices = self._kernels.choose(requests, columns.noise.hashes, top_m if has_q else 0)
        tokens = [columns.token_id(chosen[0]) if chosen else None for chosen in choices.tokens]
        if not has_q:
            return DraftChoice(tokens, None, None)
        return DraftChoice(tokens, *_q_of(rows, requests, tokens, choices, columns))

    def _requests(
        self, logits: torch.Tensor, spans: Sequence[_Span], columns: Columns, under_rejection: ChoiceRule
    ) -> list[ChoiceRequest]:
        rows = LogitRows(logits)
        requests, first_row = [], 0
        to_adjust = []
        for span in spans:
            spec, sampling = span.state.spec, span.state.spec.sampling
            if is_greedy(span.state):
                rule = ChoiceRule.PEAK
            else:
                rule = ChoiceRule.COUPLED if spec.acceptance is Acceptance.COUPLED else under_rejection
            is_draft = rule is ChoiceRule.PROPOSE
            request = ChoiceRequest(
                rows,
                first_row,
                rule,
                seed_of_draft(spec.seed, span.draft_index) if is_draft else spec.seed,
                span.position,
                span.drafts,
                usable_temperature(sampling.temperature),
                sampling.top_k,
                sampling.top_p,
                sampling.min_p,
            )
            # Only the minimum length depends on the position, and it ends: the first position tells.
            if needs_adjusting(span.state, len(span.state.tokens) + len(span.known_drafts)):
                to_adjust.append((span, request))
            requests.append(request)
            first_row += len(span.drafts) + 1
        if to_adjust:
            self._adjust(logits, to_adjust, columns)
        return requests

    def _adjust(self, logits: torch.Tensor, to_adjust: Sequence[tuple[_Span, ChoiceRequest]], columns: Columns) -> None:
        """Give requests with penalties, bias or a minimum length their own copies of their rows."""
        num_rows = sum(len(span.drafts) + 1 for span, _ in to_adjust)
        if len(self._adjusted) < num_rows or self._adjusted.shape[-1] != columns.num_columns:
            self._adjusted = torch.empty(num_rows, columns.num_columns)  # kept: fresh memory costs page faults
        rows, first_row = LogitRows(self._adjusted), 0
        for span, request in to_adjust:
            for index in range(len(span.drafts) + 1):
                row = self._adjusted[first_row + index]
                row.copy_(logits[request.first_row + index])
                adjust_in_place(row, span.state, [*span.known_drafts, *span.drafts[:index]], columns)
            request.logits, request.first_row = rows, first_row
            first_row += len(span.drafts) + 1


class _Span(NamedTuple):
    """One request's positions in a call.

    position: that of the first, for its random numbers. known_drafts: those before it, of this round.
    drafts: those to decide about. draft_index: drafts of this round before the first.
    """

    state: SequenceState
    position: int
    known_drafts: Sequence[int]
    drafts: Sequence[int]
    draft_index: int = 0


def _q_of(
    rows: Sequence[ChoiceRow],
    requests: Sequence[ChoiceRequest],
    tokens: Sequence[int | None],
    choices: Choices,
    columns: Columns,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q_ids and q_probs of `DraftChoice`. For a token that was not sampled, q is 1 on the token."""
    q_ids, q_probs = columns.token_ids(choices.kept), choices.probs
    for index, (row, request, token) in enumerate(zip(rows, requests, tokens, strict=True)):
        is_certain = request.rule is ChoiceRule.PEAK and row.state.spec.acceptance is Acceptance.REJECTION
        if is_certain and token is not None:
            q_ids[index, 0], q_probs[index, 0] = token, 1.0
    return torch.from_numpy(q_ids), torch.from_numpy(q_probs)
