"""`minedraft bench` on a service with fake workers: what it measures, shows and writes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier
from tests.integration.test_service import Gate

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    {"question_id": number, "category": "qa", "turns": [f"question {number}", "and more"]} for number in range(5)
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=1024, max_model_len=2048)
    drafter = FakeDrafter(num_blocks=1024, max_model_len=2048)
    async with fake_service(
        tmp_path, verifier=verifier, drafter=drafter, max_batch_size=2, allow_configure=True
    ) as service:
        yield service


async def start(service: FakeService, folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    (folder / "question.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.main", "bench", "--server", service.address,
        "--dataset", str(folder / "question.jsonl"), "--no-chat-template", "--json", str(folder / "r.json"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "r.json").read_text())
    return content


async def test_every_combination_is_run_and_its_figures_add_up(service: FakeService, tmp_path: Path) -> None:
    sweeps = ("-m", "1,2", "-k", "1,2", "-n", "1,2", "--temperature", "0,0.8")
    process = await start(service, tmp_path, *sweeps, "--max-new-tokens", "6", "--repeats", "1", "--save-detailed")
    out, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "run 2 of 56: " in said.decode()
    assert " left" in said.decode()
    assert "2 prompts, 6 tokens each n=2 T=0.8" in out.decode()
    content = read(tmp_path)
    assert content["traffic"]["has_template"] is False
    tables = content["tables"]
    assert [(t["sampling"]["n"], t["sampling"]["temperature"]) for t in tables[:8:2]] == [
        (1, 0), (1, 0.8), (2, 0), (2, 0.8)
    ]  # fmt: skip
    assert len(tables) == 2 * 2 * 2 * 2
    for table in tables:
        modes = [(row["config"]["mode"], row["config"]["max_batch_size"]) for row in table["rows"]]
        m = modes[0][1] // 2
        assert modes == [("ar", 2 * m), ("sd", m), ("sd", 2 * m), ("minedraft", m)], "sd at m and at 2m"
        assert table["num_prompts"] == max(2 * m // table["sampling"]["n"], 1)
        for row in table["rows"]:
            check_run(row["runs"][0], table, row["config"]["draft_len"])


def check_run(run: dict[str, Any], table: dict[str, Any], draft_len: int) -> None:
    ours = run["minedraft"]
    assert (run["completed"], run["failed"]) == (table["num_prompts"], 0)
    assert run["output_lens"] == [6 * table["sampling"]["n"]] * table["num_prompts"]
    assert all(num > 0 for num in run["input_lens"])
    assert ours["drafted_rows"] == sum(ours["accepted_len_histogram"])
    assert len(ours["accepted_len_histogram"]) == (draft_len + 1 if draft_len else 0)
    assert ours["accepted_drafts"] == sum(i * rows for i, rows in enumerate(ours["accepted_len_histogram"]))
    assert ours["p50_ttft_ms"] <= ours["p50_e2el_ms"]
    assert len(run["ttfts"]) == len(run["itls"]) == table["num_prompts"]


async def test_an_interrupted_benchmark_writes_what_there_is(service: FakeService, tmp_path: Path) -> None:
    gate = Gate(service.verifier)
    process = await start(service, tmp_path, "--modes", "ar", "-m", "2", "--max-new-tokens", "6", "--repeats", "99")
    assert process.stderr is not None
    while b"run 2 of 99" not in await process.stderr.readline():
        pass
    gate.close()
    await service.until(lambda: gate.num_waiting)
    process.send_signal(signal.SIGINT)
    out, said = await process.communicate()
    gate.open()
    assert process.returncode == 130
    assert b"interrupted; the service goes back to its own settings" in said
    assert b"written to" in out
    (row,) = read(tmp_path)["tables"][0]["rows"]
    assert 1 <= len(row["runs"]) < 99


async def test_a_benchmark_of_one_run_can_be_read_as_one_of_vllm(service: FakeService, tmp_path: Path) -> None:
    load = ("--rate", "400", "--burstiness", "2", "--concurrency", "2", "--num-prompts", "7", "--seed", "5")
    process = await start(service, tmp_path, "--modes", "minedraft", "-m", "1", "--repeats", "1", *load)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    content = read(tmp_path)
    assert (content["completed"], content["total_output_tokens"]) == (7, 7 * 64)
    assert 1 <= content["max_concurrent_requests"] <= 2
    assert content["spec_decode_num_drafts"] == content["minedraft"]["drafted_rows"]
    assert content["traffic"] == {
        "rate": 400.0, "burstiness": 2.0, "concurrency": 2, "seed": 5, "has_template": False, "has_file_lens": False
    }  # fmt: skip


async def test_a_run_of_which_nothing_came_is_an_error(service: FakeService, tmp_path: Path) -> None:
    process = await start(service, tmp_path, "--modes", "ar", "--max-new-tokens", "4000")
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"all 8 requests failed, the first one with INVALID" in said
    assert not (tmp_path / "r.json").exists()
