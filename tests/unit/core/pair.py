"""A scheduler in mode ar with two requests, and the verifier that it drives: one step at a time, by hand."""

from __future__ import annotations

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest, Request, RequestUpdate
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler
from minedraft.engine.mirrors import make_ledger
from minedraft.messages import VerifyCommand, VerifyReply
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, Mode, RoundId
from tests.fakes.workers import EPOCH, FakeVerifier

PROMPTS = ((1, 2), (3, 4, 5))


class Pair:
    """Two requests with `PROMPTS`. size: seats of their batch. sampling: beside 20 new tokens at most."""

    def __init__(
        self, *, size: int = 2, max_steps: int = 1, stop_ids: tuple[int, ...] = (), **sampling: object
    ) -> None:
        self.verifier = FakeVerifier()
        limits = SchedulerLimits(Mode.AR, size, max_model_len=64, max_steps=max_steps)
        self.scheduler = Scheduler(limits, make_ledger(self.verifier.info), None)
        params = SamplingParams(**{"max_new_tokens": 20, **sampling})
        self.requests = [self.scheduler.add(NewRequest(p, params, stop_ids=stop_ids)) for p in PROMPTS]

    def plan(self) -> RoundPlan:
        plan = self.scheduler.plan(Batch.A)
        assert plan is not None
        return plan

    def follow(self, plan: RoundPlan) -> RoundPlan:
        following = self.scheduler.follow(plan)
        assert following is not None
        return following

    def send(self, plan: RoundPlan) -> VerifyCommand:
        return VerifyCommand(RoundId(EPOCH, plan.batch, plan.number), self.scheduler.assemble(plan, ()))

    def commit(self, plan: RoundPlan, command: VerifyCommand, reply: VerifyReply) -> list[RequestUpdate]:
        return self.scheduler.commit(plan, command.spans, reply.verdicts)

    def output_of(self, request: Request) -> list[int]:
        return request.tokens[request.spec.prompt_len :]
