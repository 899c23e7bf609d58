"""What must hold: of each answer, of the service under load, and of the service when all is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import (
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    MineDraftError,
    Overloaded,
    RequestAborted,
)
from minedraft.output import Output, ServiceStatus, join_outputs
from minedraft.types import FinishReason, Mode
from tests.stress.load import Ask, Way
from tests.stress.models import EOS_ID
from tests.stress.presets import Preset
from tests.stress.service import Broken, Held, Service
from tests.stress.truth import Truth

_ALLOWED: dict[Way, type[MineDraftError]] = {
    Way.ABORT: RequestAborted,
    Way.DEADLINE: DeadlineExceeded,
    Way.TWIN: DuplicateRequest,
}
# The reasons that clients cause by what they send and do.
_CLIENTS_REASONS = {
    kind.reason for kind in (InvalidRequest, RequestAborted, DeadlineExceeded, DuplicateRequest, Overloaded)
}
_SETTLE_S = 60.0
_MAX_MORE_FILES = 4
_MAX_MORE_MB = 64.0
_PROBE_ID = 5
_PROBE_LEN = 12


@dataclass(slots=True)
class Answer:
    """What a client has got so far. `was_left`: it went away before the end."""

    started_s: float
    last_s: float
    pieces: list[Output] = field(default_factory=list)
    error: MineDraftError | None = None
    was_left: bool = False

    @property
    def samples(self) -> dict[int, Output]:
        """The joined pieces by index."""
        indexes = sorted({piece.index for piece in self.pieces})
        return {index: join_outputs([piece for piece in self.pieces if piece.index == index]) for index in indexes}


def judge(ask: Ask, answer: Answer, truth: Truth, preset: Preset) -> str:
    """Say how a request ended, in one word.

    Raises:
        Broken: not as it should have.
    """
    error = answer.error
    if isinstance(error, Overloaded) and preset.may_overload:
        return "overloaded"
    if ask.is_invalid:
        if not isinstance(error, InvalidRequest):
            raise Broken(f"{ask} must be refused; got {error!r} and {answer.pieces}")
        return "refused"
    for index, sample in answer.samples.items():
        problem = _judge_sample(ask, index, sample, truth)
        if problem is not None:
            raise Broken(f"{ask}, sample {index}: {problem}\n  got {sample}")
    if error is not None:
        if not isinstance(error, _ALLOWED.get(ask.way, ())):
            raise Broken(f"{ask} failed: {type(error).__name__}: {error}")
        return ask.way.value
    if answer.was_left:
        return ask.way.value
    num_whole = sum(sample.finish_reason is not None for sample in answer.samples.values())
    if num_whole != ask.params.get("n", 1):
        raise Broken(f"{ask} ended with {num_whole} whole samples; got {answer.pieces}")
    was_aborted = any(sample.finish_reason is FinishReason.ABORT for sample in answer.samples.values())
    return "abort" if was_aborted else "whole"


def _judge_sample(ask: Ask, index: int, sample: Output, truth: Truth) -> str | None:
    tokens, reason = sample.token_ids, sample.finish_reason
    if reason is FinishReason.ABORT and ask.way is not Way.ABORT:
        return "nobody aborted it"
    is_whole = reason in (FinishReason.STOP, FinishReason.LENGTH)
    if ask.known is not None:
        expected = truth.expect(ask.known, ask.params)
        if tokens != (expected.tokens if is_whole else expected.tokens[: len(tokens)]):
            return f"the model's own generate gives {expected.tokens}"
        if is_whole and (reason is not expected.reason or _ascii(sample.text) != _ascii(expected.text)):
            return f"it should end by {expected.reason.value} with the text {expected.text!r}"
    if ask.seeded is not None:
        has_stopped = reason is FinishReason.STOP
        if problem := truth.check_seeded(ask.seeded.number, index, tokens, has_stopped=has_stopped):
            return problem
    return _judge_form(ask, sample, truth, is_whole=is_whole)


def _ascii(text: str) -> str:
    """Without characters that may be spread over tokens, or over the end of the prompt."""
    return text.encode("ascii", "ignore").decode()


def _judge_form(ask: Ask, sample: Output, truth: Truth, *, is_whole: bool) -> str | None:
    """What holds whatever the tokens are."""
    tokens, params = sample.token_ids, ask.params
    num_new, num_masked = params["max_new_tokens"], params.get("min_new_tokens", 0)
    stop_ids = {*params.get("stop_token_ids", ()), *(() if params.get("ignore_eos") else (EOS_ID,))}
    if len(tokens) > num_new or any(not 0 <= token < truth.vocab_size for token in tokens):
        return "too many tokens, or ids outside the vocabulary"
    if stop_ids & set(tokens[:-1]) or stop_ids & set(tokens[:num_masked]):
        return "it went on after a stop id, or stopped before min_new_tokens"
    if "logprobs" in params:
        if len(sample.logprobs) != len(tokens):
            return "not one log-probability for each token"
        for entry in sample.logprobs:
            ranked = list(entry.top_logprobs)
            if len(ranked) != params["logprobs"] or ranked != sorted(ranked, reverse=True) or entry.logprob > 0:
                return "log-probabilities are not those of the best tokens in order"
    if not is_whole:
        return None
    if sample.finish_reason is FinishReason.LENGTH and (len(tokens) != num_new or stop_ids & set(tokens)):
        return "finish_reason length is wrong"
    has_stop_string = any(stop in truth.text(tokens) for stop in params.get("stop", ()))
    if sample.finish_reason is FinishReason.STOP and not (stop_ids & set(tokens[-1:]) or has_stop_string):
        return "finish_reason stop is wrong"
    usage = sample.usage
    if usage is None or usage.output_tokens != len(tokens) or usage.prompt_tokens != len(ask.prompt.token_ids):
        return "usage counts other tokens"
    if not 0 <= usage.accepted_tokens <= usage.drafted_tokens:
        return "usage counts more accepted than drafted tokens"
    return None


def check_status(status: ServiceStatus, mode: Mode) -> None:
    """What holds at any time.

    Raises:
        Broken: drafting is off, a worker is lost, or something failed inside.
    """
    lost = [worker.role for worker in status.workers if worker.state != "ready"]
    if status.state != "serving" or status.mode != mode.value or lost:
        raise Broken(f"state {status.state!r}, mode {status.mode!r}, lost workers: {lost}")
    if inside := {reason: n for reason, n in status.errors.items() if reason not in _CLIENTS_REASONS}:
        raise Broken(f"errors inside the service: {inside}")


async def check_idle(client: AsyncClient, mode: Mode) -> None:
    """When every client has left: nothing waits or runs, all KV is back, and drafting is on.

    Raises:
        Broken: it is not so, and does not become so.
    """
    deadline_s = time.monotonic() + _SETTLE_S
    while not _is_settled(status := await client.status()):
        check_status(status, mode)
        if time.monotonic() > deadline_s:
            raise Broken(f"not idle {_SETTLE_S:g} s after the last answer: {describe(status)}")
        await asyncio.sleep(0.02)
    # A strong bias makes any target and any drafter say the same.
    params = SamplingParams(max_new_tokens=_PROBE_LEN, logit_bias={_PROBE_ID: 100.0}, ignore_eos=True)
    probe = await client.complete([_PROBE_ID, 6, _PROBE_ID], params, timeout_s=_SETTLE_S)
    num_drafted = probe.usage.drafted_tokens if probe.usage is not None else 0
    if probe.token_ids != (_PROBE_ID,) * _PROBE_LEN or (num_drafted > 0) is not mode.has_drafts:
        raise Broken(f"the last request got {num_drafted} drafts and {probe.token_ids}")
    check_status(await client.status(), mode)


def _is_settled(status: ServiceStatus) -> bool:
    is_free = all(worker.num_free_blocks == worker.num_blocks for worker in status.workers)
    return is_free and status.num_waiting == status.num_running == 0


async def check_growth(service: Service, before: Held) -> None:
    """When every client has left: no process holds more open files, nor the scheduler much more memory.

    Raises:
        Broken: it is not so, and does not become so.
    """
    deadline_s = time.monotonic() + _SETTLE_S
    while True:  # connections that clients have closed are noticed a moment later
        after = service.held()
        more_files = {pid: after.num_files[pid] - num for pid, num in before.num_files.items()}
        if max(more_files.values()) <= _MAX_MORE_FILES:
            break
        if time.monotonic() > deadline_s:
            raise Broken(f"open files grew, by process id: {more_files}")
        await asyncio.sleep(0.05)
    if after.scheduler_mb > before.scheduler_mb + _MAX_MORE_MB:
        raise Broken(f"the scheduler's memory grew from {before.scheduler_mb:.0f} to {after.scheduler_mb:.0f} MiB")


def describe(status: ServiceStatus) -> str:
    """One line for a report."""
    free = ", ".join(f"{w.role} {w.state} {w.num_free_blocks}/{w.num_blocks} blocks free" for w in status.workers)
    return (
        f"{status.state}, {status.num_running} running, {status.num_waiting} waiting, {status.steps} steps, "
        f"{status.preemptions} preemptions; {free}; errors {status.errors}"
    )


def describe_waiting(waiting: Sequence[tuple[Ask, Answer]], now_s: float, num_most: int = 8) -> str:
    """The requests that wait longest, one a line."""
    oldest = sorted(waiting, key=lambda item: item[1].last_s)[:num_most]
    lines = [f"  {ask}: {len(a.pieces)} pieces, the last {now_s - a.last_s:.1f} s ago" for ask, a in oldest]
    return "\n".join([f"{len(waiting)} requests wait:", *lines])
