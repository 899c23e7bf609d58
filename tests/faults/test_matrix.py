"""Each fault that a worker can make, made at its point in a running service; then all that must hold after it."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import MineDraftError
from minedraft.output import ServiceStatus
from tests.faults.case import Live
from tests.faults.conftest import Service
from tests.faults.gate import Action, Point, Reached
from tests.faults.load import HANG_S, Answers, States, ask_all, settled, watching
from tests.faults.rows import ROWS
from tests.faults.stack import Held, Stack
from tests.support.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_LATE = "drafter_refused"
_MORE_FILES = 4  # of the scheduler: connections that clients have just closed
_LIVE = [pytest.param(live, id=f"{row.row}-{live}") for row in ROWS for live in row.live]


@pytest.mark.parametrize("live", _LIVE)
def test_a_fault_costs_what_the_matrix_says(live: Live, service: Service, record_property: Callable[..., None]) -> None:
    stack = service.get(live.role if live.num_deaths else None, live.num_deaths)
    try:
        measured = asyncio.run(disturb(stack, live, service))
    except BaseException:
        service.stop()  # the next test gets one that nothing has happened to
        raise
    for name, seconds in measured.items():
        record_property(name, seconds)


async def disturb(stack: Stack, live: Live, service: Service) -> dict[str, float]:
    """Make the fault under load and check what follows. Return what was measured, in seconds."""
    before, mark = stack.held(), stack.mark()
    stack.gate.clear()
    async with watching(stack.address) as states:
        earlier = states.status
        assert earlier is not None, "it answered"
        if live.dies_loading:
            stack.gate.arm(live.role, Point.LOADING, Action.KILL)
        stack.gate.arm(live.role, live.point, live.action, after=live.after)
        answers = asyncio.create_task(ask_all(stack.address))
        reached = await come(stack, live)
        if live.resume_after_s is not None:
            await asyncio.sleep(live.resume_after_s)
            resume(reached.pid)
        check_answers(live, await answers, service.truth)
        async with AsyncClient(stack.address) as client:
            await settled(client)
            await check_fresh(client)
            later = await settled(client)
            states.see(later.state)
    check_states(live, states)
    check_status(live, earlier, later)
    check_log(live, stack, mark)
    check_held(stack, before)
    noticed_s, back_s = states.seconds_after(reached.at_s)
    return {name: round(s, 3) for name, s in (("noticed_s", noticed_s), ("back_s", back_s)) if s is not None}


async def come(stack: Stack, live: Live) -> Reached:
    """Return when the worker has come to the point."""
    async with asyncio.timeout(HANG_S):
        while (reached := stack.gate.reached(live.role, live.point)) is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    return reached


def resume(pid: int) -> None:
    """Send SIGCONT to a process, unless it has been killed meanwhile."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(signal.SIGCONT)


async def check_fresh(client: AsyncClient) -> None:
    """Send a new request: it must be answered, and drafted for."""
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, logit_bias={7: 100.0})
    answer = await client.complete([7, 8, 7], params, timeout_s=HANG_S)
    assert answer.token_ids == (7,) * 24
    assert answer.usage is not None
    assert answer.usage.accepted_tokens > 0, "drafting is back, and drafts are accepted as before"


def check_answers(live: Live, answers: Answers, truth: Answers) -> None:
    """Whoever is not at fault has the tokens that it has without it, and the bits of their log-probabilities."""
    errors = [answer for answer in answers if isinstance(answer, MineDraftError)]
    assert [error.reason for error in errors] == [live.fails_with] * live.num_failed
    assert [answer for answer in answers if answer not in errors] == [
        tokens for answer, tokens in zip(answers, truth, strict=True) if answer not in errors
    ]


def check_states(live: Live, states: States) -> None:
    assert states.names == ("serving", *live.health), states.names


def check_status(live: Live, earlier: ServiceStatus, later: ServiceStatus) -> None:
    """The worker was replaced, and no other; one counter names the cause."""
    epochs = [{worker.role: worker.epoch for worker in status.workers} for status in (earlier, later)]
    changed = {role for role, epoch in epochs[1].items() if epoch != epochs[0][role]}
    assert changed == ({live.role.value} if live.is_lost else set()), "which workers were replaced"
    counts = [{**status.faults, "stale_replies": status.stale_replies} for status in (earlier, later)]
    grown = {name: count - counts[0].get(name, 0) for name, count in counts[1].items()}
    if live.counts != _LATE:  # on a slow machine a draft can be late by itself
        grown.pop(_LATE, None)
    assert {name: count for name, count in grown.items() if count} == ({live.counts: 1} if live.counts else {})


def check_log(live: Live, stack: Stack, mark: int) -> None:
    """Exactly one line names the cause."""

    def num_lines() -> int:
        return sum(bool(re.search(live.says, line)) for line in stack.said(mark))

    if live.says:
        until(num_lines, 30, f"a line with {live.says!r} in {stack.said(mark)}")
        assert num_lines() == 1, stack.said(mark)


def check_held(stack: Stack, before: Held) -> None:
    """Nothing is left of a worker that was replaced."""
    after = stack.held()
    assert stack.num_children == 3
    assert (after.run_files, after.shm_files) == (before.run_files, before.shm_files)
    assert after.num_files <= before.num_files + _MORE_FILES
