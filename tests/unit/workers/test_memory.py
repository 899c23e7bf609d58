"""What a worker takes for its share is counted from."""

from __future__ import annotations

from pathlib import Path

import pytest

from minedraft_workers.execution.memory import available_memory

GB = 1_000_000_000


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
