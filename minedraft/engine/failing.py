"""What a worker's failure is: of one command, or of the worker."""

from __future__ import annotations

from minedraft.core import events
from minedraft.core.rounds import RoundPlan
from minedraft.errors import LossCause, MineDraftError, WorkerLost
from minedraft.types import Role

MAX_FAILURES = 3
"""Failed commands in a row that name no request at fault, after which the worker itself is held at fault."""


def loss_cause(error: MineDraftError) -> LossCause:
    """Return how a worker was lost: a worker of which no error of another kind is left broke the contract."""
    return error.cause if isinstance(error, WorkerLost) else LossCause.PROTOCOL


def failed_command(role: Role, plan: RoundPlan | None, error: MineDraftError) -> events.CommandFailed:
    """Return the event of a command that a worker did not execute; plan: None for a release."""
    batch, number = (None, 0) if plan is None else (plan.batch, plan.number)
    return events.CommandFailed(role, batch, number, str(error), error.reason, error.request_id)
