"""What users write and get stays out of logs and off the disk: three real processes that log all they can."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from minedraft import Client, SamplingParams
from minedraft.errors import MineDraftError
from tests.support.processes import until
from tests.support.tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
MARKER = "okapi"
PROMPT = f"the {MARKER} sleeps"
ODD_IDS = [311, 17, 222, 45, 301, 8, 219, 77]


@dataclass
class Running:
    process: psutil.Popen
    folder: Path

    @property
    def address(self) -> str:
        return f"unix:{self.folder}/run/m.sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        launcher = psutil.Process(self.process.pid)
        return [launcher, *launcher.children(recursive=True)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "run").mkdir(mode=0o700)
    make_tiny_model(folder / "target")
    make_tiny_model(folder / "draft", layers=1, seed=1)
    argv = [
        "--target",
        str(folder / "target"),
        "--draft",
        str(folder / "draft"),
        "--listen",
        f"unix:{folder}/run/m.sock",
    ]
    argv += [
        "--mode",
        "minedraft",
        "--draft-len",
        "2",
        "--dtype",
        "float32",
        "--num-blocks",
        "64",
        "--kernels",
        "torch",
    ]
    argv += ["--target-device", "cpu", "--draft-device", "cpu", "--log-level", "debug", "--verbose"]
    with (folder / "log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        process = psutil.Popen(
            [sys.executable, "-m", "minedraft.cli.launch", *argv], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
    running = Running(process, folder)
    try:
        until(lambda: "stop with Ctrl-C" in running.log or process.poll() is not None, 150, "ready")
        assert process.poll() is None, running.log
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        until(lambda: not list((folder / "run").iterdir()), 30, "an empty run folder")


def test_no_process_dumps_its_memory_and_its_sockets_are_for_its_user(service: Running) -> None:
    assert len(service.tree()) == 4
    for process in service.tree():
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert [line.split()[4] for line in limits.splitlines() if line.startswith("Max core file")] == ["0"], limits
    sockets = [path for path in (service.folder / "run").rglob("*") if path.is_socket()]
    assert len(sockets) >= 4
    for path in sockets:
        assert path.stat().st_mode & 0o777 == 0o600, path
        assert path.parent.stat().st_mode & 0o777 == 0o700, path
    for process in service.tree():
        assert not [c for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN], (
            "no port by default"
        )


def test_the_log_holds_no_text_of_a_prompt_or_an_answer_at_any_level(service: Running) -> None:
    answers = []
    with Client(service.address, timeout_s=60) as client:
        greedy = SamplingParams(max_new_tokens=16, ignore_eos=True, stop=[f"{MARKER} stops"], logprobs=2)
        answers.append(client.complete(PROMPT, greedy, request_id="request-one"))
        answers.append(client.complete([{"role": "user", "content": PROMPT}], SamplingParams(max_new_tokens=4)))
        answers.append(client.complete(ODD_IDS, SamplingParams(max_new_tokens=8, temperature=1.0, seed=3)))
        odd = [  # most are refused
            (PROMPT * 5000, SamplingParams()),
            ([{"role": MARKER, "content": PROMPT}], SamplingParams()),
            (PROMPT, SamplingParams(max_new_tokens=100_000)),
            ([*ODD_IDS, 99_999], SamplingParams()),
        ]
        for prompt, params in odd:
            with suppress(MineDraftError):
                client.complete(prompt, params)
        stream = client.generate(PROMPT, SamplingParams(max_new_tokens=400, ignore_eos=True))
        next(stream)
        stream.close()  # aborted
        with suppress(MineDraftError):
            client.complete(PROMPT, SamplingParams(max_new_tokens=400, ignore_eos=True), timeout_s=0.01)
        client.status()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    log = service.log
    for name in ("scheduler", "verifier", "drafter"):
        assert f"minedraft.{name}" in log, f"{name} has logged"
    assert " DEBUG " in log
    assert "request-one" in log, "requests are known by their ids"
    words = {word for answer in answers for word in answer.text.split() if len(word) > 5}
    ids = [", ".join(map(str, part)) for part in (ODD_IDS[:3], *(answer.token_ids[:3] for answer in answers))]
    assert words
    assert not [told for told in (MARKER, *words, *ids) if told in log]
