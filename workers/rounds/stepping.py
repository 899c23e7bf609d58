"""Commands of several decode steps: one forward for each, without a word to the scheduler in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from minedraft.messages import Verdict, VerifyCommand, VerifySpan
from minedraft_workers.rounds.actors import REFUSALS, Work


def run_steps(
    verify: Callable[[VerifyCommand], Work[Verdict]], command: VerifyCommand, is_curtailed: Callable[[], bool]
) -> Work[Verdict]:
    """Return the verdicts on a command: those of its first step, with the tokens of the further ones.

    Each step is what a command of its own would be, so its tokens are the same. A request is left out of the further
    ones when it has had all its own, when its output has ended, when its grammar forces what comes next, and when its
    logits are of no use: it then has fewer tokens, and the next command about it is told the error. So it is with all
    requests when a further step is refused, which leaves them as they were. Raise as `verify` for the first step.

    Args:
        is_curtailed: asked before each further step: whether to make none.
    """
    work = verify(command)
    most = max([span.num_steps for span in command.spans], default=1)
    if most == 1:
        return work
    verdict_of = {verdict.request_id: verdict for verdict in work.rows}
    forward_ns = work.forward_ns
    for step in range(1, most):
        spans = () if is_curtailed() else _next_spans(command.spans, verdict_of, step)
        if not spans:
            break
        try:
            further = verify(VerifyCommand(command.round, spans))
        except REFUSALS:
            break
        forward_ns += further.forward_ns
        for verdict in further.rows:
            if verdict.error:
                continue
            before = verdict_of[verdict.request_id]
            verdict_of[verdict.request_id] = replace(
                before,
                tokens=before.tokens + verdict.tokens,
                logprobs=before.logprobs + verdict.logprobs,
                num_forced=verdict.num_forced,
                is_end=verdict.is_end,
            )
    return replace(work, rows=tuple(verdict_of.values()), forward_ns=forward_ns)


def _next_spans(spans: Sequence[VerifySpan], verdict_of: dict[int, Verdict], step: int) -> tuple[VerifySpan, ...]:
    """Return the spans of a further step: one token of each request that has had all steps before it and goes on."""
    next_spans = []
    for span in spans:
        verdict = verdict_of[span.request_id]
        goes_on = not verdict.is_end and not verdict.num_forced
        if span.num_steps > step and verdict.num_steps == step and goes_on:
            next_spans.append(VerifySpan(span.request_id, verdict.cached_len, verdict.tokens[-1:]))
    return tuple(next_spans)
