"""Which servers run at the same time. The sizes are those of processes that ran: three servers with a target of 3.6 GB
took all of 24 GB, and the kernel killed one."""

from __future__ import annotations

from pathlib import Path

from scripts.lib.vllm.memory import own_bytes, together
from scripts.lib.vllm.ways import ServerPlan, Way

WAYS = [Way.AR, Way.OWN, Way.SERIAL, Way.ALTERNATING]
FREE = 19_500_000_000  # of 24 GB, beside a drafter


def _plan(folder: Path, target_bytes: int, draft_bytes: int) -> ServerPlan:
    for name, size in (("target", target_bytes), ("draft", draft_bytes)):
        (folder / name).mkdir()
        with (folder / name / "model.safetensors").open("wb") as weights:
            weights.truncate(size)  # no disk is taken
    return ServerPlan(folder / "target", folder / "draft", "bfloat16", 3, 16, 512, folder)


def test_servers_of_a_large_target_run_two_at_a_time(tmp_path: Path) -> None:
    sizes = own_bytes(_plan(tmp_path, 3_554_214_752, 1_260_367_448), WAYS)
    assert sizes[Way.SERIAL] > 7_700_000_000
    assert together(WAYS, sizes, FREE) == [[Way.SERIAL, Way.ALTERNATING], [Way.OWN, Way.AR]]


def test_servers_of_a_small_target_run_all_at_the_same_time(tmp_path: Path) -> None:
    sizes = own_bytes(_plan(tmp_path, 269_060_552, 205_329_672), WAYS)
    (every,) = together(WAYS, sizes, FREE)
    assert sorted(every) == sorted(WAYS)
