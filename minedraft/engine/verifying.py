"""The verifier's part in the rounds: one command per round, releases, and the loss of the verifier."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minedraft.core import events
from minedraft.core.ledger import KvLedger
from minedraft.core.request import RequestUpdate
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler
from minedraft.engine.failing import MAX_FAILURES, failed_command, loss_cause
from minedraft.engine.mirrors import check_balance, make_ledger
from minedraft.engine.workers import Verifier
from minedraft.errors import InternalError, MineDraftError, WorkerLost
from minedraft.messages import Verdict, VerifyCommand, VerifySpan, WorkerInfo
from minedraft.types import Role, RoundId

logger = logging.getLogger("minedraft.pipeline")


@dataclass(frozen=True, slots=True)
class Checked:
    """The spans that the verifier executed in a round, and its verdicts on them."""

    spans: tuple[VerifySpan, ...]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A round without verdicts. refusal: the verifier's; None if the verifier was lost."""

    refusal: MineDraftError | None = None


class Verifying:
    """Sends the verifier its commands and keeps its mirror in the scheduler.

    Args:
        deliver: passes updates of requests to their sinks.
        publish: passes an event to the observers.
        wake: makes both lanes check again for work.
        can_return: if true, requests outlive the loss of the verifier and wait for `gain`; otherwise its
            loss is raised.

    Attributes:
        verifier: the present verifier or, while `is_lost`, the last one.
        refusal: why no request is taken: the verifier has been away for too long; None while it is waited for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        verifier: Verifier,
        *,
        deliver: Callable[[Sequence[RequestUpdate]], None],
        publish: Callable[[events.Event], None],
        wake: Callable[[], None],
        can_return: bool,
    ) -> None:
        self.verifier = verifier
        self.is_lost = False
        self.refusal: MineDraftError | None = None
        self._scheduler = scheduler
        self._deliver = deliver
        self._publish = publish
        self._wake = wake
        self._can_return = can_return
        self._num_failures = 0  # rounds in a row that failed with no request named
        self._last_stepped = self._last_curtailed = 0  # numbers of rounds of several steps

    async def verify(self, plan: RoundPlan, spans: tuple[VerifySpan, ...]) -> Checked | Unchecked:
        """Return the verdicts of a round, or why there are none.

        Raises:
            WorkerLost: the verifier is lost and cannot return.
            ProtocolError: MAX_FAILURES commands failed in a row, and the verifier cannot return.
        """
        if not self._scheduler.is_current(plan):  # lost during the draft
            return Unchecked()
        if not spans:  # every request of the round was aborted meanwhile
            return Checked((), ())
        verifier, ledger = self.verifier, plan.verifier_kv
        released = ledger.take_releases()
        round_id = RoundId(verifier.info.epoch, plan.batch, plan.number)
        command = VerifyCommand(round_id, spans, released, plan.feature_layers)
        if any(span.num_steps > 1 for span in spans):
            self._last_stepped = plan.number
        try:
            reply = await verifier.verify(command)
        except MineDraftError as error:
            ledger.return_releases(released)
            self._on_error(verifier, error, plan)
            return Unchecked(None if isinstance(error, WorkerLost) else error)
        if not plan.follows:  # a verifier that refuses a round still answers the one that follows it
            self._num_failures = 0
        self._acknowledge(ledger, released)
        feature_bytes = sum([verdict.features.states.num_bytes for verdict in reply.verdicts if verdict.features])
        num_steps = max([verdict.num_steps for verdict in reply.verdicts], default=1)
        self._publish(events.Verified(plan.batch, plan.number, reply.timing, feature_bytes, max(num_steps, 1)))
        return Checked(spans, reply.verdicts)

    def curtail(self) -> None:
        """Have the rounds that the verifier has make no further steps if a request waits for their end to be seated."""
        has_steps = self._last_stepped > self._last_curtailed and not self.is_lost
        if has_steps and self._scheduler.batches.has_seat():
            self._last_curtailed = self._last_stepped
            self.verifier.curtail(self._last_curtailed)

    def give_up(self, plan: RoundPlan, error: MineDraftError | None) -> None:
        """End a round that has no verdicts. A refusal ends the request that the verifier named, or all of the
        round if it named none; a round of a lost verifier comes again. All other requests go on."""
        if error is None or not self._scheduler.is_current(plan):
            self._deliver(self._scheduler.lose_round(plan))
        else:
            internal = InternalError(f"the verifier refused this request: {error}")
            self._deliver(self._scheduler.abandon(plan, error.request_id, internal))

    async def release(self) -> bool:
        """Send the releases that no command has carried. Return whether there were any. Raise as `verify`."""
        verifier, ledger = self.verifier, self._scheduler.verifier_kv
        if self.is_lost or not (released := ledger.take_releases()):
            return False
        try:
            num_free = await verifier.release(released)
        except MineDraftError as error:
            ledger.return_releases(released)
            self._on_error(verifier, error, None)
            return True
        self._num_failures = 0
        self._acknowledge(ledger, released)
        check_balance(Role.VERIFIER, self._scheduler, ledger, num_free)
        return True

    def lose(self, error: MineDraftError) -> None:
        """Plan nothing until `gain`."""
        if not self.is_lost:
            logger.warning("verifier lost, requests wait until it is back: %s", error)
            self.is_lost = True
            updates = self._scheduler.detach_verifier()
            self._publish(events.WorkerLeft(Role.VERIFIER, str(error), replace(self.verifier.stats), loss_cause(error)))
            self._deliver(updates)
            self._wake()

    def stop_waiting(self, error: MineDraftError) -> None:
        """End every request with `error`, and take none until `gain`: the verifier has been away for too long."""
        if self.is_lost:
            self.refusal = error
            self._deliver(self._scheduler.fail_all(error))

    def gain(self, verifier: Verifier) -> None:
        """Go on with `verifier`, whose worker knows no request yet."""
        assert self.is_lost, "the lost verifier is dropped first"
        _tell_shrunk(self.verifier.info, verifier.info)
        self.verifier, self.is_lost, self.refusal, self._num_failures = verifier, False, None, 0
        updates = self._scheduler.attach_verifier(make_ledger(verifier.info))
        self._publish(events.WorkerJoined(verifier.info))
        self._deliver(updates)
        self._wake()

    def _on_error(self, verifier: Verifier, error: MineDraftError, plan: RoundPlan | None) -> None:
        """Count a failed command, and drop a verifier that is lost or fails whatever comes."""
        if verifier is not self.verifier or self.is_lost:  # dropped meanwhile
            return
        if not isinstance(error, WorkerLost):
            self._publish(failed_command(Role.VERIFIER, plan, error))
            self._num_failures += error.request_id is None
            if self._num_failures < MAX_FAILURES:
                return
        if not self._can_return:
            raise error
        verifier.give_up(f"{MAX_FAILURES} commands failed in a row, the last: {error}")
        self.lose(error)

    def _acknowledge(self, ledger: KvLedger, released: tuple[int, ...]) -> None:
        """Free the blocks of executed releases, and wake both lanes: requests may wait for the blocks."""
        if released:
            ledger.acknowledge(released)
            self._wake()


def _tell_shrunk(last: WorkerInfo, new: WorkerInfo) -> None:
    """Warn of a verifier whose KV cache holds less than that of the last one."""
    tokens, before = new.num_blocks * new.block_size, last.num_blocks * last.block_size
    if tokens < before:
        what = "requests that cannot fit end or are refused, and fewer run at once"
        logger.warning(
            "the verifier is back with KV memory for %d tokens, the last one had %d: %s", tokens, before, what
        )
