"""Rounds on their way between a scheduler and workers that a test drives hop by hop."""

from __future__ import annotations

from minedraft.core.rounds import RoundPlan
from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import DraftCommand, Proposal, VerifyCommand, VerifyReply


class InFlight:
    """A round of one batch, at the point it has reached."""

    def __init__(self, plan: RoundPlan) -> None:
        self.plan = plan
        self.proposals: tuple[Proposal, ...] | None = None
        self.verify_command: VerifyCommand | None = None
        self.reply: VerifyReply | None = None
        self.refusal: ProtocolError | None = None

    @property
    def is_executed(self) -> bool:
        is_asked = self.verify_command is not None
        return is_asked and (not self.verify_command.spans or self.reply is not None or self.refusal is not None)


class Refusal:
    """Makes a worker refuse its next command, naming one of its requests or none."""

    def __init__(self, names_a_request: bool) -> None:
        self.names_a_request = names_a_request
        self.is_spent = False

    def __call__(self, command: DraftCommand | VerifyCommand) -> None:
        if not self.is_spent:
            self.is_spent = True
            error = InvalidRequest("tokens", "odd", "refused for the test")
            error.request_id = command.spans[-1].request_id if self.names_a_request else None
            raise error
