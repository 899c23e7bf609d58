"""Rounds that follow another one: they start from tokens that the scheduler did not know when it sent them. They may
have several steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from minedraft.errors import StaleRound
from minedraft.messages import Verdict, VerifyCommand, VerifySpan
from minedraft.types import RoundId
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.stepping import run_steps


class Follower:
    """Executes verify commands, with the tokens that the last one gave in the spans that follow it.

    Args:
        verify: executes a command all of whose spans have tokens.
        release: frees requests; called instead of `verify` if no span is left.
    """

    def __init__(
        self, verify: Callable[[VerifyCommand], Work[Verdict]], release: Callable[[Sequence[int]], None]
    ) -> None:
        self._verify = verify
        self._release = release
        self._last: dict[int, Verdict] = {}  # of the last command, by request id; empty if it was refused
        self._epoch = 0
        self._curtailed = 0, 0  # epoch and number of the last round that makes no further step

    def curtail(self, epoch: int, number: int) -> None:
        """Have the rounds of an epoch up to a number make no further step. Call it in any thread."""
        self._curtailed = epoch, number

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        """Return the verdicts on a command; that on a span which follows no token is STALE_ROUND. Raise as `verify`."""
        last, self._last = self._last, {}
        if command.round.epoch != self._epoch:
            self._epoch, last = command.round.epoch, {}
        if any(span.follows for span in command.spans):
            return self._follow(command, last)
        return self._execute(command)

    def _follow(self, command: VerifyCommand, last: dict[int, Verdict]) -> Work[Verdict]:
        spans: list[VerifySpan] = []
        stale: list[Verdict] = []
        for span in command.spans:
            token = _next_token(last.get(span.request_id), span.prefix_len) if span.follows else ()
            if span.follows and not token:
                stale.append(Verdict(span.request_id, span.committed_len, 0, (), error=StaleRound.reason))
            else:
                spans.append(replace(span, tokens=token, follows=False) if token else span)
        if not spans:
            self._release(command.released)
            return Work(tuple(stale))
        work = self._execute(VerifyCommand(command.round, tuple(spans), command.released, command.feature_layers))
        return replace(work, rows=(*work.rows, *stale)) if stale else work

    def _execute(self, command: VerifyCommand) -> Work[Verdict]:
        work = run_steps(self._verify, command, lambda: self._is_curtailed(command.round))
        self._last = {verdict.request_id: verdict for verdict in work.rows}
        return work

    def _is_curtailed(self, round_id: RoundId) -> bool:
        epoch, number = self._curtailed
        return round_id.epoch == epoch and round_id.number <= number


def _next_token(verdict: Verdict | None, prefix_len: int) -> tuple[int, ...]:
    """Return the token after `prefix_len` committed tokens, as a tuple; empty if the verdict does not give it."""
    if verdict is None or not verdict.tokens or verdict.cached_len != prefix_len:
        return ()
    return verdict.tokens[-1:] if not verdict.num_forced else ()  # the forced ones come before the next round's
