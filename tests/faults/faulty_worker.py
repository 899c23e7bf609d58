"""`minedraft-worker` with gates: `python -m tests.faults.faulty_worker FOLDER drafter|verifier FLAGS`.

The product's own command with actors and a stream that come to the points of `gate.py`; FOLDER is shared with the
test.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import minedraft_workers.composition as composition
import minedraft_workers.servicer as servicer
from minedraft.types import Role
from minedraft.v1 import worker_pb2
from minedraft_workers.main import main
from tests.faults.gate import Action, Point, WorkerGate

# In place of a reply. A stream that is given no bytes fails, and its connection ends.
_INSTEAD: dict[Action | None, Any] = {Action.GARBAGE: b"\xff" * 100, Action.CUT: 0}


def gate_loading(gate: WorkerGate) -> None:
    """Have `load_actors` come to LOADING, and make actors with gates."""
    load_actors = composition.load_actors

    def load(*args: Any, **kwargs: Any) -> Any:
        gate.come(Point.LOADING)
        from tests.faults.gated_actors import gate_actors  # imports torch, which must be pinned first

        gate_actors(gate)
        return load_actors(*args, **kwargs)

    composition.load_actors = load


def gate_replies(gate: WorkerGate) -> None:
    """Have the stream of commands come to REPLY with each answer to a round."""

    class GatedStream(servicer._CommandStream):
        _late: worker_pb2.Reply | None = None

        def _send(self, message: worker_pb2.Reply) -> None:
            is_round = bool(rows_of(message))
            action = gate.come(Point.REPLY) if is_round else None
            if action is Action.LATE:
                self._late = message
                return
            if action in _INSTEAD:
                self._outbox.append(_INSTEAD[action])
                self._has_mail.set()
                return
            if action is Action.WRONG:
                spoil(message)
            if action is Action.TWICE:
                super()._send(message)
            super()._send(message)
            if self._late is not None and is_round:
                late, self._late = self._late, None
                super()._send(late)

    servicer._CommandStream = GatedStream


def rows_of(message: worker_pb2.Reply) -> Any:
    """Return the proposals or verdicts of a reply; empty if it has none."""
    return message.draft.proposals or message.verify.verdicts


def spoil(message: worker_pb2.Reply) -> None:
    """Put a token id that no vocabulary has into a reply."""
    for row in rows_of(message):
        row.tokens.append(1 << 30)


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    worker_gate = WorkerGate(folder, Role(sys.argv[1]))
    gate_loading(worker_gate)
    gate_replies(worker_gate)
    main()
