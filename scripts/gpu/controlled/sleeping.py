"""A drafter that sleeps instead of computing: a second device, simulated. It imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from minedraft.messages import Branch, DraftCommand, DraftSpan, Proposal, WorkerInfo
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role
from minedraft_workers.rounds.actors import Work
from scripts.gpu.controlled.token_map import TokenMap

_BLOCKS, _BLOCK_SIZE = 1 << 20, 16


class DraftTimes:
    """How long a draft takes.

    Args:
        table: number of requests -> drafts per request -> milliseconds.
    """

    def __init__(self, table: Mapping[int, Mapping[int, float]]) -> None:
        if not table or not all(table.values()):
            raise ValueError("a table of draft times has a row of times for each number of requests")
        self._table = {m: dict(table[m]) for m in sorted(table)}

    @classmethod
    def from_json(cls, text: str) -> DraftTimes:
        """Return the times of a table in JSON, whose keys are texts."""
        return cls({int(m): {int(k): float(ms) for k, ms in row.items()} for m, row in json.loads(text).items()})

    def seconds(self, num_requests: int, draft_len: int) -> float:
        """Return the time of the next larger entry, or of the largest one; 0 without drafts."""
        if not num_requests or not draft_len:
            return 0.0
        m = next((m for m in self._table if m >= num_requests), max(self._table))
        row = self._table[m]
        return row[next((k for k in sorted(row) if k >= draft_len), max(row))] / 1e3


class SleepingDrafter:
    """Proposes what the controlled draft model would, after sleeping as long as that takes elsewhere."""

    def __init__(self, token_map: TokenMap, times: DraftTimes, tokenizer: Path | None) -> None:
        self.info = WorkerInfo(
            role=Role.DRAFTER,
            epoch=0,
            protocol_version=PROTOCOL_VERSION,
            vocab_size=len(token_map.draft),
            vocab_fingerprint=vocab_fingerprint(tokenizer) if tokenizer is not None else "",
            num_blocks=_BLOCKS,
            block_size=_BLOCK_SIZE,
            max_model_len=_BLOCKS * _BLOCK_SIZE,
            model_name="sleeping",
            device="none",
            dtype="none",
            draft_method=DraftMethod.MODEL,
            is_batch_invariant=True,
        )
        self.num_free_blocks = self.info.num_blocks
        self._map = token_map
        self._times = times

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        start_s = time.monotonic()
        asked = [span for span in command.spans if span.draft_len]
        proposals = [self._propose(span) for span in asked]
        until_s = start_s + self._times.seconds(len(asked), max((span.draft_len for span in asked), default=0))
        time.sleep(max(until_s - time.monotonic(), 0.0))
        return Work(tuple(proposals))

    def _propose(self, span: DraftSpan) -> Proposal:
        """Return the drafts of a span; of one that runs ahead, the branch in which all drafts are accepted."""
        if span.ahead is None:
            drafts = tuple(self._map.drafts(span.tokens[-1], span.draft_len))
            return Proposal(span.request_id, span.committed_len, drafts)
        guess, *after = self._map.drafts(span.tokens[-1], span.draft_len + 1)
        committed_len = span.committed_len + span.ahead.num_drafts + 1
        branch = Branch(span.ahead.num_drafts, guess)
        return Proposal(span.request_id, committed_len, tuple(after), branch=branch)

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        return self.draft(command)

    def release(self, request_ids: Sequence[int]) -> None:
        pass

    def reset(self, target_vocab_size: int) -> None:
        pass
