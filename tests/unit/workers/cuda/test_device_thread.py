"""What a worker does on a GPU before its first command, as far as it can be seen without one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import InternalError
from minedraft.types import Role
from minedraft_workers.composition import prepare_actor
from minedraft_workers.device import enter_thread, make_exact
from minedraft_workers.rounds.runtime import WorkerRuntime
from scripts.lib.null_worker import NullActor
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.tiny_models import make_tiny_model

CARD = Device("cuda", index=3)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The thread and the number of every card that becomes the current one."""
    chosen: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda i: chosen.append((threading.current_thread().name, i)))
    return chosen


async def test_the_device_thread_has_its_device_before_the_first_command(chosen: list[tuple[str, int]]) -> None:
    runtime = WorkerRuntime(NullActor(Role.VERIFIER))
    await runtime.prepare(lambda: enter_thread(CARD))
    enter_thread(Device("cpu"))
    assert chosen == [("device", 3)]
    assert runtime.stop(5)


async def test_what_the_preparation_raises_is_raised() -> None:
    def fail(error: Exception) -> None:
        raise error

    runtime = WorkerRuntime(NullActor(Role.VERIFIER))
    with pytest.raises(InternalError, match="RuntimeError: no such card"):
        await runtime.prepare(lambda: fail(RuntimeError("no such card")))
    assert runtime.crashed.is_set()


@pytest.mark.parametrize("role", Role)
def test_a_command_of_each_kind_runs_in_advance_and_leaves_nothing(
    role: Role, tmp_path: Path, chosen: list[tuple[str, int]]
) -> None:
    executor = load_executor(make_tiny_model(tmp_path), num_blocks=8, block_size=1)  # the least that settings allow
    verifier = InProcessVerifier(executor)
    actor = verifier.actor if role is Role.VERIFIER else InProcessDrafter(executor, verifier).actor
    num_rows: list[int] = []
    forward = executor.forward
    executor.forward = lambda spans: num_rows.append(len(spans)) or forward(spans)  # type: ignore[method-assign]
    prepare_actor(CARD, actor)
    assert len(num_rows) == (3 if role is Role.VERIFIER else 6), "greedy, coupled and rejection; two drafts each"
    assert chosen == [("MainThread", 3)]
    assert executor.num_free_blocks == 8


def test_matmuls_on_a_gpu_compute_what_their_dtype_says(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.fp32_precision = "tf32"
        matmul.allow_bf16_reduced_precision_reduction = True
        make_exact()
        assert (matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction) == ("ieee", False)
    finally:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before
