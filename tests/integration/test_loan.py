"""Borrowing the service: its settings change for a while, and come back whatever happens to the borrower."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.core.limits import SchedulerLimits
from minedraft.errors import Draining, InvalidRequest, Unavailable
from minedraft.types import Mode
from minedraft.v1 import inference_pb2
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.integration.test_service import Gate

PROMPT = [5, 6, 7]
OWN = (Mode.MINEDRAFT, 2, 3)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    drafter = FakeDrafter(num_blocks=512, max_model_len=2048)
    flags = {"max_batch_size": 2, "allow_configure": True}
    async with fake_service(tmp_path, verifier=verifier, drafter=drafter, **flags) as service:
        assert settings_of(service) == OWN
        yield service


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address, timeout_s=60) as client:
        yield client


def settings_of(service: FakeService) -> tuple[Mode, int, int]:
    assert service.server.pipeline is not None
    limits: SchedulerLimits = service.server.pipeline.scheduler.limits
    return limits.mode, limits.max_batch_size, limits.draft_len


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_tokens)


async def test_the_settings_hold_during_the_loan_and_no_longer(client: AsyncClient, service: FakeService) -> None:
    before = (await client.status()).finished_requests
    async with client.borrow() as loan:
        for mode in Mode:
            await loan.configure(mode, max_batch_size=1, draft_len=4)
            assert settings_of(service) == (mode, 1, 4 if mode.has_drafts else 0)
            assert list((await client.complete(PROMPT, greedy(20))).token_ids) == continuation(PROMPT, 20)
        assert (await client.status()).finished_requests == before + len(Mode), "counts go on over a change"
    assert settings_of(service) == OWN


async def test_a_loan_without_a_change_leaves_the_counters_alone(client: AsyncClient) -> None:
    before = (await client.status()).finished_requests
    await client.complete(PROMPT, greedy(5))
    async with client.borrow():
        pass
    assert (await client.status()).finished_requests == before + 1


async def test_a_borrower_that_fails_gives_the_service_back(client: AsyncClient, service: FakeService) -> None:
    async def fail() -> None:
        async with client.borrow() as loan:
            await loan.configure("ar", 1, 0)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    await service.until(lambda: settings_of(service) == OWN)


async def test_the_blocking_client_borrows_as_well(service: FakeService) -> None:
    def talk() -> None:
        with Client(service.address, timeout_s=60) as client:
            with client.borrow() as loan:
                loan.configure("sd", 3, 2)
                assert settings_of(service) == (Mode.SD, 3, 2)
                with pytest.raises(Unavailable, match="another client"), client.borrow():
                    pass
            assert settings_of(service) == OWN

    await asyncio.to_thread(talk)


async def test_the_service_is_lent_to_one_client_at_a_time(client: AsyncClient, service: FakeService) -> None:
    async with client.borrow() as loan:
        await loan.configure("sd", 1, 1)
        async with AsyncClient(service.address, timeout_s=60) as other:
            with pytest.raises(Unavailable, match="another client has borrowed the service"):
                await other.borrow().__aenter__()
        assert settings_of(service) == (Mode.SD, 1, 1)
    async with client.borrow():
        pass


async def test_the_operator_must_have_allowed_it(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service, AsyncClient(service.address, timeout_s=60) as client:
        with pytest.raises(InvalidRequest, match="without --allow-configure"):
            await client.borrow().__aenter__()


async def test_settings_out_of_range_are_refused_by_both_sides(
    client: AsyncClient, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.borrow() as loan:
        with pytest.raises(InvalidRequest, match="draft_len is 17"):
            await loan.configure("sd", 1, 17)
        await loan.configure("sd", 1, 16)

    async def ask_for_more_than_our_client_would() -> None:
        async with client.borrow() as loan:
            with pytest.raises(InvalidRequest, match="mode is 'warp'"):
                await loan.configure("sd", 1, 1)
            await loan.configure("sd", 1, 1)  # that ended the loan, and the reason stays

    monkeypatch.setattr("minedraft.loan.borrow_to_pb", lambda *_: inference_pb2.BorrowRequest(mode="warp"))
    with pytest.raises(InvalidRequest, match="mode is 'warp'"):
        await ask_for_more_than_our_client_would()
    await service.until(lambda: settings_of(service) == OWN)


async def test_requests_that_run_or_wait_are_kept_when_the_settings_change(
    client: AsyncClient, service: FakeService
) -> None:
    gate = Gate(service.verifier)
    gate.close()
    answers = [asyncio.create_task(client.complete([n, 3], greedy(30))) for n in range(9)]
    scheduler = service.server.pipeline.scheduler
    await service.until(lambda: scheduler.batches.num_requests and len(scheduler.requests) == 9)
    async with client.borrow() as loan:
        change = asyncio.create_task(loan.configure("sd", 1, 1))
        await client.abort("nobody")  # a round trip: the service has seen the change before it
        assert not change.done(), "more decode than have a seat now"
        gate.open()
        await change
        assert settings_of(service) == (Mode.SD, 1, 1)
        assert scheduler.batches.num_requests <= 1
    assert settings_of(service) == OWN
    for n, answer in enumerate(await asyncio.gather(*answers)):
        assert list(answer.token_ids) == continuation([n, 3], 30)


async def test_a_service_that_drains_ends_the_loan(client: AsyncClient, service: FakeService) -> None:
    async def hold() -> None:
        async with client.borrow() as loan:
            await loan.configure("ar", 1, 0)
            service.server.on_signal()
            await service.task
            await loan.configure("sd", 1, 1)

    with pytest.raises(Draining, match="which ends the loan"):
        await hold()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
async def test_a_bench_that_is_killed_leaves_the_service_as_it_found_it(service: FakeService, signum: int) -> None:
    gate = Gate(service.verifier)
    gate.close()
    flags = ("--server", service.address, "-m", "3", "-k", "2", "--modes", "sd")
    bench = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.main", "bench", *flags,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    await service.until(lambda: gate.num_waiting and settings_of(service) != OWN)
    bench.send_signal(signum)
    _, said = await bench.communicate()
    gate.open()
    await service.until(lambda: settings_of(service) == OWN)
    await service.blocks_free()
    if signum == signal.SIGINT:
        assert bench.returncode == 130
        assert said.decode().splitlines()[-1] == "interrupted; the service goes back to its own settings"


@pytest.mark.slow
async def test_a_bench_runs_every_row_and_leaves_the_service_as_it_found_it(
    service: FakeService, tmp_path: Path
) -> None:
    flags = ("-m", "2", "-k", "2", "--repeats", "1", "--max-new-tokens", "8", "--json", str(tmp_path / "r.json"))
    bench = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.main", "bench", "--server", service.address, *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    out, said = await bench.communicate()
    assert bench.returncode == 0, said.decode()
    assert settings_of(service) == OWN
    assert [row for row in ("ar 4", "sd 2", "sd 4", "minedraft 2+2") if row not in out.decode()] == []
    assert "tokens_per_s" in (tmp_path / "r.json").read_text()
