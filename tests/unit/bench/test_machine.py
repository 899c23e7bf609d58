"""What a result says of the machine that it was measured on."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from minedraft.bench.machine import find_gpus, name_cpu
from minedraft.bench.report import machine_facts

TWO_CARDS = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 580.159.04, 81559, 1980, 700.00"
echo "NVIDIA H200, 580.159.04, 143771, 1980, [N/A]"
"""


def install(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the machine's nvidia-smi."""
    (folder / "nvidia-smi").write_text(program)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus_are_named_with_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, TWO_CARDS, monkeypatch)
    first, second = machine_facts()["gpus"]
    assert (first["name"], first["driver_version"], first["memory.total"]) == (
        "NVIDIA H100 80GB HBM3",
        "580.159.04",
        "81559",
    )
    assert (second["name"], second["power.limit"]) == ("NVIDIA H200", "[N/A]")


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho No devices were found\n"])
def test_a_driver_without_a_gpu_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    install(tmp_path, program, monkeypatch)
    assert find_gpus() == []


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []


def test_versions_of_the_libraries_are_said() -> None:
    versions = machine_facts()["versions"]
    assert versions["torch"] == version("torch")
    assert {"python", "transformers", "numpy"} <= versions.keys()


@pytest.mark.parametrize(
    ("family", "flags", "name"),
    [
        ("25", ["avx2"], "AMD EPYC (Zen 3)"),
        ("25", ["avx2", "avx512f"], "AMD EPYC (Zen 4)"),
        ("26", ["avx2", "avx512f"], "AMD EPYC (Zen 5)"),
        ("99", ["avx2"], "AMD EPYC"),
    ],
)
def test_a_cpu_whose_name_a_virtual_machine_hides_has_its_generation(family: str, flags: list[str], name: str) -> None:
    assert name_cpu({"model name": "AMD EPYC", "cpu family": family}, flags) == name
    assert name_cpu({"model name": "AMD EPYC 9654", "cpu family": family}, flags) == "AMD EPYC 9654"
    assert name_cpu({}, flags) == ""
