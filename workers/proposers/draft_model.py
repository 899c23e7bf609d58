"""Drafting with a small language model.

A round is `draft_len` forwards in a row: the first has the tokens that are not cached yet, each later one
a single token per request. The last draft is not fed back, so after a round the KV holds the committed
tokens and all drafts but the last.

A row that runs ahead has tokens in flight: drafts that the verifier checks meanwhile. Its first forward has those
and the committed token before them, so its logits say at each of them what else could come; from these the
likeliest ways for the verify to end are chosen (`branches.py`), and each becomes a row of the forwards that follow.
The first branch continues the request's own KV, each other one a fork of it. This is `draft_len + 1` forwards, as
many as the first branch alone takes: a forward of few rows is bound by reading the weights.

On a GPU the host waits for the device once a round, at its end (`device_loop.py`), and before the forwards of branches,
which it chooses. If a request follows a grammar the host also reads its tokens once a forward, while the device
computes the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft_workers.clock import clock_for
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.runner import GraphCapturing
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.choosing import DraftChooser
from minedraft_workers.proposers.device_loop import DeviceLoop
from minedraft_workers.sampling.batched.transfer import upload
from minedraft_workers.sampling.choose import DEFAULT_TOP_M
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import HeldBranch

logger = logging.getLogger("minedraft.drafter")


class ModelProposer:
    """Drafts with a small language model."""

    feature_layers: tuple[int, ...] = ()
    feature_size = 0

    def __init__(
        self,
        executor: Executor,
        sampler: Sampler | None = None,
        top_m: int = DEFAULT_TOP_M,
        *,
        loops_on_device: bool | None = None,
    ) -> None:
        """Take the draft model, and what chooses from its logits, by default with torch.

        loops_on_device: whether the tokens of a round stay on the device until its end; None: if that is a GPU.
        """
        self._executor = executor
        self._clock = clock_for(executor.device)
        self._chooser = DraftChooser(sampler or Sampler(), executor.vocab_size, executor.draft_vocab_ids, top_m)
        loops = executor.device.type == "cuda" if loops_on_device is None else loops_on_device
        self._loop = DeviceLoop(self._chooser, self._forward) if loops else None

    @property
    def graphs(self) -> GraphCapturing | None:
        return self._executor.graphs

    @property
    def num_free_blocks(self) -> int:
        return self._executor.num_free_blocks

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens, then draft until every row has `draft_len` drafts. Implements `Proposer`.

        A row gets fewer drafts at the end of its context or at logits that are not finite; all rows do if
        the KV blocks or the memory run out.
        """
        self._clock.start()
        for row in rows:
            self._settle_forks(row)
        logits = self._forward(
            [ForwardSpan(row.state.request_id, row.prefix_len, row.tokens, _num_logits(row)) for row in rows]
        )
        for row in rows:
            row.state.replace_from(row.prefix_len, row.committed)
        plain, of_plain, branches = self._start(rows, logits)
        logits = logits if len(plain) == len(logits) else logits.index_select(0, upload(of_plain, logits.device))
        if self._loop is not None:
            self._loop.draft(plain, logits, branches)
        else:
            if plain:
                self._chooser.choose(logits, plain)
            self._draft([*plain, *branches])
        for row in rows:
            self._keep_tokens(row)
        return self._clock.finish()

    def _settle_forks(self, row: DraftRow) -> None:
        """Let the fork that the row continues become the request, and drop the others."""
        if row.adopts:
            self._executor.adopt(row.state.request_id, row.adopts)
        else:
            self._executor.drop_forks(row.state.request_id)

    def _start(
        self, rows: Sequence[DraftRow], logits: torch.Tensor
    ) -> tuple[list[DraftRow], npt.NDArray[np.int64], list[DraftRow]]:
        """Return the rows to draft on: those that ask for drafts, with the rows of logits that their first ones are
        chosen from, and the branches of those that run ahead, which begin with the token of the branch."""
        # Branches are chosen by many small steps: on the host, from one copy of the logits.
        host_logits = logits.cpu() if any(row.ahead is not None for row in rows) else logits
        plain: list[DraftRow] = []
        of_plain: list[int] = []
        branches: list[DraftRow] = []
        end = 0
        for row in rows:
            start, end = end, end + _num_logits(row)
            if row.ahead is not None:
                branches += self._branch_off(row, host_logits[start:end])
            # The KV of draft i (from 1) is at position committed_len + i - 1; the last draft has none.
            elif (most := min(row.draft_len, self._room(row))) > 0:
                row.draft_len = most
                plain.append(row)
                of_plain.append(start)
        return plain, np.array(of_plain, np.int64), branches

    def _branch_off(self, row: DraftRow, logits: torch.Tensor) -> list[DraftRow]:
        """Choose the branches of a row that runs ahead. The first one continues the request's own KV."""
        state = row.state
        for branch in self._chooser.choose_branches(logits, row):
            kv_id = state.request_id
            try:
                if row.branches:
                    kv_id = self._executor.fork(state.request_id, row.committed_len + branch.accepted_len)
            except BlocksExhausted as error:
                logger.warning("fewer branches prepared: %s", error)
                break
            ahead = row.branch_off(branch.accepted_len, branch.token, kv_id, row.draft_len)
            ahead.draft_len = min(ahead.draft_len, self._room(ahead))
            if ahead.draft_len > 0:
                row.branches.append(ahead)
            elif not row.branches:
                break
        return row.branches

    def _draft(self, rows: Sequence[DraftRow]) -> None:
        """Draft until every row is done, or the memory is at its end."""
        while active := [row for row in rows if not row.is_done]:
            try:
                logits = self._forward(
                    [
                        ForwardSpan(
                            row.kv_id or row.state.request_id,
                            row.committed_len + len(row.uncommitted) - 1,
                            row.uncommitted[-1:],
                            1,
                        )
                        for row in active
                    ]
                )
            except (BlocksExhausted, torch.OutOfMemoryError) as error:
                logger.warning("drafting stopped early: %s", error)
                break
            self._chooser.choose(logits, active)

    def _keep_tokens(self, row: DraftRow) -> None:
        """Record whose tokens are cached: of the request, or of its first branch, and of the branches beside it."""
        state = row.state
        if row.ahead is None:
            state.tokens.extend(row.drafts[:-1])
            return
        if not row.branches or not row.branches[0].drafts:  # nothing after the request's own KV: no branch at all
            self._executor.drop_forks(state.request_id)
            row.branches.clear()
            state.tokens.extend(row.in_flight)
            return
        row.branches = [branch for branch in row.branches if branch.drafts]
        first, *others = row.branches
        committed_len = row.committed_len
        state.branches = [HeldBranch(b.kv_id, committed_len, tuple(b.uncommitted[:-1])) for b in others]
        state.tokens.extend(first.uncommitted[:-1])

    def _room(self, row: DraftRow) -> int:
        """Return how many drafts fit in the context after a row's committed tokens and its lead."""
        return self._executor.max_model_len - row.committed_len - len(row.lead) + 1

    def release(self, request_id: int) -> None:
        self._executor.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._executor.release_all()
        self._chooser.limit(target_vocab_size)

    def _forward(self, spans: Sequence[ForwardSpan], *given: torch.Tensor) -> torch.Tensor:
        with self._clock.forward():
            return self._executor.forward(spans, *given)


def _num_logits(row: DraftRow) -> int:
    """Return how many of the row's last positions decide what is drafted."""
    if row.ahead is None or row.ahead.num_branches == 1:
        return 1 if row.draft_len else 0
    return row.ahead.num_drafts + 1
