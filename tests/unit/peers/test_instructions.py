"""Engines held to AVX2: by variables, by another build, and watched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from minedraft.device import usable_cores
from minedraft_workers.native.library import ISA_VARIABLE
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.driving import Outcome, Plan, measure_all
from scripts.lib.peers.engines import instructions, vllm_cpu
from scripts.lib.peers.engines.base import InFormat, Setup
from scripts.lib.peers.engines.instructions import Instructions, Watch, can_watch, variables_for
from scripts.lib.peers.engines.llama_cpp import LlamaCpp
from scripts.lib.peers.engines.vllm_cpu import VllmCpu
from scripts.lib.peers.prompts import PromptSet
from tests.unit.peers.test_driving import ToldPeer

# Computes with the libraries of this project when it is told to.
_COMPUTING = """
print("started", flush=True)
input()
import numpy, torch
from minedraft_workers.native.kernels import NativeKernels
numpy.exp(numpy.ones((300, 300), numpy.float32) @ numpy.zeros((300, 300), numpy.float32))
for dtype in (torch.float32, torch.bfloat16):
    x = torch.ones(300, 300, dtype=dtype)
    torch.softmax(torch.nn.functional.linear(x, x), -1).float().sort()
kernels = NativeKernels()
kernels.linear(torch.ones(4, 512), kernels.pack(torch.ones(512, 512)))
print("computed", flush=True)
input()
"""


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Path("models/some"), "bfloat16", (0,), 32, 512, tmp_path, Instructions.AVX2)


def users_of_avx512(variables: Mapping[str, str]) -> list[str]:
    """The threads of a process that used it to compute."""
    with subprocess.Popen(
        [sys.executable, "-c", _COMPUTING],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        watch = Watch()  # what ran between fork and exec is this program
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"computed\n"
        users = watch.users_of_avx512([psutil.Process(process.pid)])
        process.stdin.write(b"\n")
    assert process.returncode == 0
    return users


@pytest.mark.slow
def test_what_libraries_compute_with_is_held_to_avx2_and_else_seen():
    if not can_watch():
        pytest.skip("this kernel does not tell who uses AVX-512, or this CPU has none")
    assert users_of_avx512(variables_for(Instructions.AVX2)) == []
    assert users_of_avx512({})


def test_a_thread_used_it_if_that_was_after_the_watch_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instructions, "_PROC", tmp_path)
    this, now_s = psutil.Process(), [100.0]
    monkeypatch.setattr(instructions.time, "monotonic", lambda: now_s[0])
    watch = Watch()
    now_s[0] += 2.0
    folder = tmp_path / str(this.threads()[0].id)
    folder.mkdir()
    (folder / "comm").write_text("worker\n")
    for status, users in (("1999", ["worker"]), ("2000", []), ("-1", [])):
        (folder / "arch_status").write_text(f"AVX512_elapsed_ms:\t{status}\n")
        assert watch.users_of_avx512([this]) == users
    (folder / "arch_status").write_text("")  # of a CPU without it
    assert watch.users_of_avx512([this]) == []


async def test_an_engine_that_uses_more_than_it_may_has_no_figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Watch, "users_of_avx512", lambda self, processes: ["pt_main", "pt_main"])
    for widest, num_measured in ((Instructions.AVX2, 0), (Instructions.NATIVE, 1)):
        cells, outcome = [Cell(CellKind.FIXED, 2, None, 4)], Outcome()
        peer = ToldPeer("wide", [], 10.0)
        plan = Plan(Path("models/some"), "bfloat16", [peer], [usable_cores()[:1]], cells, 1, 269e6, widest)
        prompts = PromptSet("a test", tuple((i, i + 1) for i in range(64)))
        await measure_all(plan, prompts, outcome, lambda label, left_s: None)
        assert len(outcome.measurements) == num_measured
        assert ("2 threads used AVX-512" in outcome.failures.get("wide", "")) is (num_measured == 0)


def test_the_native_kernels_variable_is_the_one_that_they_read():
    assert variables_for(Instructions.AVX2)[ISA_VARIABLE] == "avx2"
    assert not variables_for(Instructions.NATIVE)


def test_llama_for_avx2_is_another_build_in_a_folder_of_its_own(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path))
    native, held = LlamaCpp(), LlamaCpp(Instructions.AVX2)
    assert "GGML_NATIVE=ON" in native.facts(setup)["build"]
    assert {"GGML_NATIVE=OFF", "GGML_AVX2=ON", "GGML_F16C=ON", "GGML_AVX512=OFF"} <= set(held.facts(setup)["build"])
    assert native.missing() == "not installed: scripts/bench/peers --install llama.cpp (about 9 minutes)"
    assert "--install llama.cpp --instructions avx2 (" in (held.missing() or "")


def test_vllm_for_avx2_is_held_by_variables_and_another_start(setup: Setup):
    facts = VllmCpu().facts(setup)
    assert facts["flags"].startswith("vllm_avx2.py --model")
    assert facts["environment"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "openai.api_server" in VllmCpu().facts(replace(setup, instructions=Instructions.NATIVE))["flags"]


@pytest.mark.slow
def test_all_of_vllms_processes_are_told_that_the_cpu_has_no_avx512(tmp_path: Path):
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (tmp_path / "vllm" / "telling.py").write_text(
        "import torch\n"
        "def tell(): print(torch.cpu._is_avx512_supported(), torch.cpu._is_amx_tile_supported(), flush=True)\n"
    )
    (folder / "api_server.py").write_text(
        "import multiprocessing, sys\n"
        "from vllm.telling import tell\n"
        "tell()\n"
        "child = multiprocessing.get_context('spawn').Process(target=tell)\n"
        "child.start()\n"
        "child.join()\n"
        "print(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, Path(vllm_cpu.__file__).with_name("vllm_avx2.py"), "--model", "some"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["False False", "False False", "['--model', 'some']"]


def test_a_peer_in_a_format_is_named_with_it(setup: Setup):
    peer = InFormat(LlamaCpp(), "float32")
    assert peer.name == "llama.cpp float32"
    assert peer.facts(setup)["dtype"] == "float32"
