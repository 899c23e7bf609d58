"""`minedraft.local.serve` with real processes and tiny real models: it answers, and leaves nothing, however it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.errors import EXIT_CONFIG, ConfigError, StartFailed, Unavailable
from minedraft.local import serve
from minedraft.process.run_folder.folder import RunFolder
from tests.support.processes import is_gone, until
from tests.support.tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SMALL = {"dtype": "float32", "num_blocks": 64, "target_device": "cpu", "draft_device": "cpu"}
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "target")
    make_tiny_model(folder / "draft", layers=1, seed=1)
    return folder


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the private folders are made; at the end of a test none is left."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    until(lambda: not list(folder.iterdir()), 30, f"empty {list(folder.iterdir())}")


def tree(pid: int) -> list[psutil.Process]:
    launcher = psutil.Process(pid)
    return [launcher, *launcher.children(recursive=True)]


def test_it_answers_and_nothing_is_left_after_the_block(models: Path) -> None:
    lines: list[str] = []
    service = serve(models / "target", models / "draft", mode="minedraft", draft_len=2, on_line=lines.append, **SMALL)
    with service as client:
        assert isinstance(client, Client)
        assert len(client.complete("Hello", GREEDY).token_ids) == 12
        status = client.status()
        assert (status.state, status.draft_len) == ("serving", 2)
        with Client(service.address) as another:
            assert another.status().state == "serving"
        processes = tree(service.pid)
    assert len(processes) == 4
    assert all(is_gone(process) for process in processes)
    assert service.exit_code == 0
    with pytest.raises(Unavailable, match="nothing listens there"):
        client.status()
    assert any(line.startswith("verifier: loaded after") for line in lines)


async def test_so_it_does_without_blocking_and_after_an_exception(models: Path) -> None:
    service = serve(target=models / "target", mode="ar", **SMALL)
    processes: list[psutil.Process] = []

    async def use() -> None:
        async with service as client:
            assert isinstance(client, AsyncClient)
            processes.extend(tree(service.pid))
            stream = client.generate("Hello", SamplingParams(max_new_tokens=400, ignore_eos=True))
            await anext(stream)
            raise KeyError("in the middle of an answer")

    with pytest.raises(KeyError):
        await use()
    assert len(processes) == 3
    assert all(is_gone(process) for process in processes)
    assert service.exit_code == 0


async def test_a_task_cancelled_while_it_starts_leaves_nothing(models: Path) -> None:
    starting = asyncio.Event()
    loop = asyncio.get_running_loop()
    service = serve(models / "target", models / "draft", on_line=print, **SMALL)

    async def use() -> None:
        loop.call_soon(starting.set)
        async with service:
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(use())
    await starting.wait()
    processes = tree(service.pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(is_gone(process) for process in processes)


def test_a_wrong_setting_is_refused_by_name_before_anything_starts(models: Path) -> None:
    with pytest.raises(ConfigError, match="draft_len is 99"):
        serve(models / "target", models / "draft", draft_len=99)
    with pytest.raises(ConfigError, match="warp is 9: unknown setting"):
        serve(models / "target", models / "draft", warp=9)


def test_a_folder_that_is_not_there_is_a_typed_error_with_the_reason(models: Path) -> None:
    service = serve(models / "nothing", models / "draft", **SMALL)
    with (
        pytest.raises(StartFailed, match=r"\(exit code 78\): target is '.*nothing': no such folder") as caught,
        service,
    ):
        pass
    assert caught.value.exit_code == EXIT_CONFIG


def test_what_a_worker_said_last_is_in_the_error(tmp_path: Path) -> None:
    broken = make_tiny_model(tmp_path / "broken", layers=1)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"pad_token_id": 400}))
    service = serve(broken, mode="ar", **SMALL)
    with pytest.raises(StartFailed, match=r"model is '.*broken': .*Padding_idx"), service:
        pass


PROGRAM = """
import sys
from minedraft.local import serve
try:
    with serve(sys.argv[1], mode="ar", dtype="float32", num_blocks=64):
        print("in the block", flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def program(models: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", PROGRAM, str(models / "target")]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_interrupted_or_killed_takes_its_service_with_it(
    program: subprocess.Popen[str], signum: signal.Signals
) -> None:
    assert program.stdout is not None
    assert any(line == "in the block\n" for line in program.stdout)
    processes = psutil.Process(program.pid).children(recursive=True)
    assert len(processes) == 3
    program.send_signal(signum)
    said, _ = program.communicate(timeout=60)
    for process in processes:
        until(lambda process=process: is_gone(process), 30, f"the end of process {process.pid}")
    if signum == signal.SIGINT:
        assert said == "interrupted\n"
        assert program.returncode == 0
    else:
        RunFolder().remove()  # the next start of any service removes what a killed process could not
