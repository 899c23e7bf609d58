"""What a worker takes for its share is counted from, and the blocks that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minedraft.errors import ConfigError
from minedraft_workers.execution.memory import CacheSize, available_memory

GB = 1_000_000_000
MB = 1_000_000
CUDA = torch.device("cuda", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", "MemTotal:       31250000 kB\nMemAvailable:   15625000 kB\n")
    write(tmp_path / "proc/self/cgroup", "1:cpu:/\n0::/\n")
    return tmp_path


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}")


def test_without_a_limit_it_is_what_the_machine_has_free(root: Path) -> None:
    assert available_memory(root) == 16 * GB
    assert available_memory() > 0


def test_the_narrowest_control_group_counts_without_what_the_kernel_takes_back(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/slice/unit\n")
    groups = root / "sys/fs/cgroup"
    for folder, limit in ((groups / "slice", 6 * GB), (groups / "slice/unit", "max")):
        write(folder / "memory.max", limit)
        write(folder / "memory.current", 3 * GB)
        write(folder / "memory.stat", f"anon {2 * GB}\ninactive_file {1 * GB}\n")
    assert available_memory(root) == 4 * GB


def test_the_first_version_of_control_groups_counts_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "7:cpu,cpuacct:/\n4:memory:/docker/of-the-host\n0::/\n")
    group = root / "sys/fs/cgroup/memory"  # a container sees its own group at the top
    write(group / "memory.limit_in_bytes", 2 * GB)
    write(group / "memory.usage_in_bytes", 3 * GB)
    write(group / "memory.stat", f"total_inactive_file {2 * GB}\n")
    assert available_memory(root) == 1 * GB
    write(group / "memory.stat", "total_inactive_file 0\n")
    assert available_memory(root) == 0


def use_card(monkeypatch: pytest.MonkeyPatch, *, num_free: int, num_own: int, num_total: int = 80 * GB) -> None:
    """Have torch say this of the device CUDA."""
    answers = {"mem_get_info": (num_free, num_total), "memory_reserved": num_own}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, {CUDA: answer}.__getitem__)


def test_on_a_gpu_weights_and_cache_together_take_the_share_of_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    use_card(monkeypatch, num_free=63 * GB, num_own=16 * GB)
    assert CacheSize().choose_blocks(MB, CUDA) == (68 - 16) * 1000
    assert CacheSize(memory_share=0.5).choose_blocks(MB, CUDA) == (40 - 16) * 1000


def test_two_workers_on_one_gpu_take_no_more_than_it_has_whichever_looks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, weights = (0.7, 0.15), (16 * GB, 1 * GB)
    for first, second in ((0, 1), (1, 0)):
        used = sum(weights)
        for worker in (first, second):
            use_card(monkeypatch, num_free=80 * GB - used, num_own=weights[worker])
            used += CacheSize(memory_share=shares[worker]).choose_blocks(MB, CUDA) * MB
        assert used == 68 * GB


def test_a_gpu_that_others_use_gives_only_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    use_card(monkeypatch, num_free=10 * GB, num_own=16 * GB)
    assert CacheSize().choose_blocks(MB, CUDA) == 9000


def test_a_cache_on_a_gpu_is_no_larger_than_its_requests_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    use_card(monkeypatch, num_free=63 * GB, num_own=16 * GB)
    size = CacheSize(block_size=16, max_requests=32, max_model_len=1001)
    assert size.choose_blocks(MB, CUDA) == 32 * 63
    assert CacheSize(max_requests=32).choose_blocks(MB, CUDA) == 52_000
    assert CacheSize(num_blocks=7, max_requests=1, max_model_len=16).choose_blocks(MB, CUDA) == 7


def test_a_gpu_without_room_for_a_block_is_told_by_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    use_card(monkeypatch, num_free=63 * GB, num_own=16 * GB)
    limit = "memory_share is 0.2: the model takes 16.00 of the GPU's 80.00 GB, 63.00 GB are free: no room for a KV "
    with pytest.raises(ConfigError, match=limit):
        CacheSize(memory_share=0.2).choose_blocks(MB, CUDA)


def test_on_the_cpu_the_cache_takes_an_eighth_of_what_is_free_or_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minedraft_workers.execution.memory.available_memory", lambda: 16 * GB)
    cpu = torch.device("cpu")
    assert CacheSize(max_requests=1, max_model_len=16).choose_blocks(MB, cpu) == 2000
    assert CacheSize(memory_share=0.5).choose_blocks(MB, cpu) == 8000
