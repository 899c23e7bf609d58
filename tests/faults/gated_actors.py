"""The product's actors, with gates around each command and inside the forward."""

from __future__ import annotations

from typing import Any

import minedraft_workers.drafter as drafter
import minedraft_workers.execution.executor as execution
import minedraft_workers.verifier as verifier
from minedraft.messages import DraftCommand, Proposal, Verdict, VerifyCommand
from minedraft_workers.rounds.runtime import Work
from tests.faults.gate import Action, Point, WorkerGate


def gate_actors(gate: WorkerGate) -> None:
    """Put classes with gates in the place of the product's: who makes an actor now gets one with gates."""
    inside: list[Point] = []  # the point that the forward of the present command is

    class GatedExecutor(execution.Executor):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return _spoiled(super().forward(*args, **kwargs), gate.come(inside[0]) if inside else None)

    class GatedDrafter(drafter.DrafterActor):
        def draft(self, command: DraftCommand) -> Work[Proposal]:
            is_draft = any(span.draft_len for span in command.spans)
            if is_draft:
                gate.come(Point.BEFORE_DRAFT)
            inside[:] = [Point.IN_DRAFT if is_draft else Point.IN_PREFILL]
            work = super().draft(command)
            if is_draft:
                gate.come(Point.AFTER_DRAFT)
            return work

    class GatedVerifier(verifier.VerifierActor):
        def verify(self, command: VerifyCommand) -> Work[Verdict]:
            gate.come(Point.BEFORE_VERIFY)
            is_prefill = not all(span.sample for span in command.spans)
            inside[:] = [Point.IN_PREFILL if is_prefill else Point.IN_VERIFY]
            work = super().verify(command)
            gate.come(Point.AFTER_VERIFY)
            return work

    execution.Executor = GatedExecutor
    drafter.DrafterActor = GatedDrafter
    verifier.VerifierActor = GatedVerifier


def _spoiled(logits: Any, action: Action | None) -> Any:
    if action is Action.NAN:
        logits = logits.clone()
        logits[0] = float("nan")
    return logits
