"""What the machine runs out of, or changes under the service."""

from __future__ import annotations

import ast
import asyncio
import resource
from pathlib import Path

import pytest

from minedraft import AsyncClient
from minedraft.errors import MineDraftError
from tests.faults.conftest import Service
from tests.faults.load import ASKED, settled
from tests.faults.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# Chat templates may ask for today's date.
MAY_READ_THE_WALL_CLOCK = {
    "minedraft/text/chat_template.py",  # a template may print the date
    "minedraft/http/model_facts.py",  # OpenAI's objects say when they were created
    "minedraft/http/responding.py",
    "minedraft/http/wire/forms.py",
    "minedraft/observe/spans.py",  # OpenTelemetry's times
    "minedraft/process/logs.py",  # the time of a line
    "minedraft/security/authority.py",  # certificates are valid from a date to a date
    "minedraft/security/tls.py",
    "workers/native/build.py",  # files of the cache have an age; one that is taken for old is built again
}


def test_without_descriptors_streams_go_on_and_newcomers_come_later(service: Service) -> None:
    asyncio.run(run_out_of_descriptors(service.get(), service.truth[0].tokens))


async def run_out_of_descriptors(stack: Stack, truth: tuple[int, ...]) -> None:
    scheduler = stack.scheduler
    limits = scheduler.rlimit(resource.RLIMIT_NOFILE)
    assert limits is not None, "returned where nothing is set"
    async with AsyncClient(stack.address) as early:
        prompt, params = ASKED[0]
        first = early.generate(prompt, params)
        tokens = list((await anext(first)).token_ids)
        scheduler.rlimit(resource.RLIMIT_NOFILE, (lowest_free(scheduler.pid), limits[1]))
        try:
            async with AsyncClient(stack.address) as late:
                with pytest.raises(MineDraftError):
                    await late.complete(prompt, params, timeout_s=1.0)
                tokens += [token async for piece in first for token in piece.token_ids]
                assert tuple(tokens) == truth
                assert (await early.complete(prompt, params)).token_ids == truth
        finally:
            scheduler.rlimit(resource.RLIMIT_NOFILE, limits)
        async with AsyncClient(stack.address) as late:
            assert (await late.complete(prompt, params, timeout_s=60)).token_ids == truth
        await settled(early)


def lowest_free(pid: int) -> int:
    """Return the number that the next descriptor of a process has: with it as the limit, there is no next one."""
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return min(set(range(len(used) + 1)) - used)


def test_no_program_of_ours_reads_the_wall_clock() -> None:
    reading = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "date.today"}
    found = set()
    for path in (*ROOT.glob("minedraft/**/*.py"), *ROOT.glob("workers/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in reading:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == MAY_READ_THE_WALL_CLOCK
