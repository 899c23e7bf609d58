"""The `minedraft` command as a process, against a service with fake workers."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from minedraft.process.entry import EXIT_REQUEST, EXIT_USAGE
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation

pytestmark = pytest.mark.slow

PROMPT = "good day"


@dataclass
class Done:
    code: int | None
    out: str
    said: str


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.main", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2], env=os.environ | variables,
    )  # fmt: skip


async def minedraft(*arguments: str, typed: str | bytes = "", encoding: str = "utf-8", **variables: str) -> Done:
    process = await start(*arguments, PYTHONIOENCODING=encoding, **variables)
    out, said = await process.communicate(typed if isinstance(typed, bytes) else typed.encode())
    return Done(process.returncode, out.decode(encoding), said.decode(encoding))


@pytest.fixture
async def service(tmp_path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=2048, max_model_len=4096)
    drafter = FakeDrafter(num_blocks=2048, max_model_len=4096)
    async with fake_service(tmp_path, verifier=verifier, drafter=drafter) as service:
        yield service


def expected(service: FakeService, num_tokens: int) -> str:
    return service.tokenizer.decode(continuation(service.tokenizer.encode(PROMPT), num_tokens))


async def test_generate_prints_the_answer_of_its_argument_or_of_what_is_piped_in(service):
    flags = ("--server", service.address, "--max-new-tokens", "20")
    given, piped = await asyncio.gather(
        minedraft("generate", *flags, PROMPT), minedraft("generate", *flags, typed=PROMPT)
    )
    assert given == piped == Done(0, expected(service, 20) + "\n", "")


async def test_generate_as_json_gives_pieces_and_usage_of_every_sample(service):
    flags = ("--max-new-tokens", "12", "--n", "2", "--logit-bias", "3:-1", "--keep-special-tokens")
    done = await minedraft("generate", "--server", service.address, "--json", *flags, PROMPT)
    pieces = [json.loads(line) for line in done.out.splitlines()]
    for index in (0, 1):
        mine = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in mine) == expected(service, 12)
        assert mine[-1]["finish_reason"] == "length"
        assert mine[-1]["usage"]["output_tokens"] == 12


PRINTER = """
import click
from minedraft.cli.console import print_json, run, say, show
@click.command()
def command():
    show("\\xe9\\u2192")
    print_json({"text": "\\xe9\\u2192"})
    say("\\xe9\\u2192")
run(command, "printer")
"""


@pytest.mark.parametrize(
    ("encoding", "out", "said"),
    [
        ("latin-1", 'é?{"text": "\\u00e9\\u2192"}\n', "é\\u2192\n"),
        ("utf-8", 'é→{"text": "é→"}\n', "é→\n"),
    ],
)
def test_a_terminal_that_lacks_characters_shows_what_it_can_and_json_loses_nothing(encoding, out, said):
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINTER], env=env, capture_output=True, check=True)
    assert (done.stdout.decode(encoding), done.stderr.decode(encoding)) == (out, said)


async def test_status_fits_any_terminal(service):
    done = await minedraft("status", "--server", service.address, encoding="ascii")
    assert done.code == 0
    assert "serving" in done.out


@pytest.mark.parametrize("command", [("top", "--once"), ("status",)])
async def test_a_terminal_that_does_not_know_its_size_shows_all(service, command):
    done = await minedraft(*command, "--server", service.address, COLUMNS="0", LINES="0")
    assert done.code == 0
    assert "serving" in done.out
    assert "verifier" in done.out


async def test_a_prompt_that_is_no_text_is_refused_in_one_line(service):
    done = await minedraft("generate", "--server", service.address, typed=b"caf\xe9")
    assert done == Done(EXIT_USAGE, "", "minedraft: prompt is '\\udce9': must be valid Unicode text\n")


async def test_status_as_json_has_the_documented_keys(service):
    done = await minedraft("status", "--server", service.address, "--json")
    status = json.loads(done.out)
    assert (status["state"], status["mode"]) == ("serving", "minedraft")
    assert [batch["name"] for batch in status["batches"]] == ["A", "B"]
    assert {worker["role"]: worker["state"] for worker in status["workers"]} == {
        "drafter": "ready",
        "verifier": "ready",
    }
    table = await minedraft("status", "--server", service.address)
    assert "serving" in table.out
    assert "overlap efficiency" in table.out


async def test_chat_sends_the_whole_conversation_each_time(service):
    flags = ("--server", service.address, "--max-new-tokens", "6", "--system", "be brief")
    done = await minedraft("chat", *flags, typed="hi\n/undo\nhello\n\nbye\n/quit\nnever\n")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    first = service.tokenizer.decode(continuation(service.tokenizer.encode_chat(messages), 6))
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "bye"}]
    second = service.tokenizer.decode(continuation(service.tokenizer.encode_chat(messages), 6))
    assert done.code == 0
    assert first in done.out
    assert second in done.out
    assert done.out.count("6 tokens,") == 3


async def test_ctrl_c_ends_an_answer_in_a_chat_and_the_chat_goes_on(service):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "minedraft.cli.main", "chat", "--server", service.address,
        "--max-new-tokens", "3000",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"hi\n\n")
    pipeline = service.server.pipeline
    await service.until(lambda: any(request.output_len > 20 for request in pipeline.scheduler.requests.values()))
    process.send_signal(signal.SIGINT)
    await service.blocks_free()
    out, said = await process.communicate(b"/new\n")
    assert process.returncode == 0
    assert "(stopped)" in out.decode(), said


async def test_a_chat_shows_an_error_as_it_is_and_goes_on(tmp_path):
    async with fake_service(tmp_path, listen=f"unix:{tmp_path}/a[/b]c.sock") as service:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-m", "minedraft.cli.main", "chat", "--server", service.address,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
            # A user's client has gRPC's own threads; this process has had the service's settings of them.
            env={name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"},
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()  # the service was there
        service.server.on_signal()
        await service.task
    out, _ = await process.communicate(b"hi\n\n/nothing\n")
    assert process.returncode == 1, "a script sees that its message was not answered"
    assert "unknown command /nothing" in out.decode()
    assert f"no answer from {service.address}: nothing listens there" in out.decode()


@pytest.mark.parametrize("command", [("generate", PROMPT), ("generate",), ("chat",), ("status",)])
async def test_closed_standard_streams_are_no_crash(service, command):
    line = shlex.join([sys.executable, "-m", "minedraft.cli.main", *command, "--server", service.address])
    process = await asyncio.create_subprocess_shell(
        f"{line} <&- >&-", stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    _, said = await process.communicate()
    assert b"Traceback" not in said
    assert process.returncode == (EXIT_USAGE if command == ("generate",) else 0), said
    assert (b"prompt is '': must not be empty" in said) == (command == ("generate",))


async def test_what_is_pasted_into_a_chat_is_one_message(service):
    terminal, its_end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.main", "chat", "--server", service.address, "--max-new-tokens", "6",
        stdin=its_end, stdout=its_end, stderr=its_end,
        cwd=Path(__file__).parents[2], env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(its_end)
    os.write(terminal, b"\x1b[200~one\n\ntwo\x1b[201~\n/nothing\n/exit\n")
    shown = await asyncio.to_thread(read_all, terminal)
    os.close(terminal)
    assert await process.wait() == 0
    assert "\x1b[?2004h" in shown, "the terminal is asked to mark what is pasted"
    messages = [{"role": "user", "content": "one\n\ntwo"}]
    assert service.tokenizer.decode(continuation(service.tokenizer.encode_chat(messages), 6)) in shown
    assert shown.count("6 tokens,") == 1
    assert "unknown command /nothing" in shown
    assert "/undo  remove the last exchange" in shown


def read_all(terminal: int) -> str:
    """What a program shows on its terminal until it ends."""
    shown = b""
    with suppress(OSError):  # how a terminal says that nobody is left
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown.decode()


async def test_a_chat_that_fills_the_context_says_what_to_do(service):
    service.server.pipeline.scheduler.limits = replace(service.server.pipeline.scheduler.limits, max_model_len=300)
    typed = "good day\n\n" + "x" * 200 + "\n"
    done = await minedraft("chat", "--server", service.address, typed=typed)
    assert "the context is full: /undo removes the last exchange" in done.out
    assert "prompt is" in done.out
    assert "the conversation is too long: /undo removes" in done.out
    assert done.code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "--temperature", "-1", PROMPT), EXIT_USAGE, "temperature is -1.0: must be in [0, 100]"),
        (("generate", "--max-new-tokens", "0", PROMPT), EXIT_USAGE, "max_new_tokens is 0: must be in [1, 1048576]"),
        (("generate", "--logit-bias", "many", PROMPT), EXIT_USAGE, "logit_bias is 'many': must be ID:VALUE"),
        (
            ("generate", "--logit-bias", "5:1", "--logit-bias", "5:2", PROMPT),
            EXIT_USAGE,
            "is [5, 5]: has a token",
        ),
        (("generate", "--logprobs", "2", PROMPT), EXIT_USAGE, "--logprobs needs --json"),
        (("chat", "--logprobs", "2"), EXIT_USAGE, "logprobs is 2: are not shown in a chat"),
        (("generate", "--n", "0", PROMPT), EXIT_USAGE, "n is 0: must be in"),
        (("generate", "--n", "x", PROMPT), EXIT_USAGE, "Invalid value for '--n'"),
        (("generate", ""), EXIT_USAGE, "prompt is '': must not be empty"),
        (("generate", "--token-ids", "1 x"), EXIT_USAGE, "--token-ids: 'x' is not a token id"),
        (("bench", "-k", "17"), EXIT_USAGE, "draft-len is '17': must be numbers in [1, 16]"),
        (("generate", "--warp", PROMPT), EXIT_USAGE, "No such option"),
        (("genrate", PROMPT), EXIT_USAGE, "No such command 'genrate'. (Did you mean 'generate'?)"),
        (("xyz",), EXIT_USAGE, "No such command 'xyz'."),
        (
            ("generate", "--server", "nowhere", PROMPT),
            EXIT_USAGE,
            "server is 'nowhere': must be unix:PATH or host:port",
        ),
        (
            ("generate", "--server", "unix:/nonexistent/m.sock", PROMPT),
            EXIT_REQUEST,
            "minedraft-launch starts the service",
        ),
        (("status", "--server", "127.0.0.1:1"), EXIT_REQUEST, "nothing listens there"),
        (("models", "fetch", "gpt-9"), EXIT_USAGE, "gpt-9"),
    ],
)
async def test_a_mistake_is_named_and_has_its_exit_code(arguments, code, words):
    done = await minedraft(*arguments)
    assert done.code == code
    assert words in " ".join(done.said.split())
    assert "Traceback" not in done.said


@pytest.mark.parametrize("modes", ["ar,sd,minedraft", "minedraft"])
async def test_bench_refuses_to_measure_drafts_on_a_service_without_a_drafter(tmp_path, modes):
    async with fake_service(tmp_path, mode="ar", allow_configure=True) as service:
        before = service.server.service.status()
        done = await minedraft("bench", "--server", service.address, "--modes", modes)
        after = service.server.service.status()
    assert (done.code, done.out.strip()) == (EXIT_USAGE, "")
    refused = modes.removeprefix("ar,").replace(",", ", ")
    assert f"minedraft: modes is '{refused}': the service runs in mode ar without a drafter: restart it" in done.said
    assert (after.mode, after.finished_requests) == ("ar", before.finished_requests), "no run was begun"


async def test_bench_refuses_to_measure_drafts_while_the_drafter_is_lost(tmp_path):
    (tmp_path / "prompts.json").write_text('[{"prompt": "hi"}]')
    flags = ("-m", "1", "--max-new-tokens", "8", "--repeats", "1", "--prompts", str(tmp_path / "prompts.json"))
    async with fake_service(tmp_path, allow_configure=True) as service:
        service.drafter.give_up("killed")
        await service.until(lambda: service.server.pipeline.drafter is None)
        refused, measured = [
            await minedraft("bench", "--server", service.address, "--modes", modes, *flags) for modes in ("sd", "ar")
        ]
    assert (refused.code, refused.out.strip()) == (1, "")
    assert "the drafter is lost, so sd would run without drafts: wait until `minedraft status`" in refused.said
    assert measured.code == 0, measured.said
    assert "ar 2" in measured.out


async def test_commands_wait_for_a_service_that_still_loads(service):
    service.server.service._is_open = False
    flags = ("--server", service.address)
    given_up = await minedraft("generate", *flags, "--timeout-s", "0.1", PROMPT)
    assert given_up.code == EXIT_REQUEST
    commands = [("generate", *flags, "--max-new-tokens", "20", PROMPT), ("chat", *flags), ("bench", *flags)]
    processes = [await start(*command) for command in commands]
    for process in processes:
        said = await process.stderr.readline()
        assert said.decode() == f"waiting for the service at {service.address}, which loads its models\n"
    service.server.service._is_open = True
    (generated, _), (chatted, _), (_, refused) = [await process.communicate(b"") for process in processes]
    assert [process.returncode for process in processes] == [0, 0, EXIT_USAGE]
    assert generated.decode() == expected(service, 20) + "\n"
    assert "Ctrl-D quits" in chatted.decode()
    assert "the service was started without --allow-configure" in refused.decode()


async def test_models_as_json_has_the_folders_of_the_default_pair(tmp_path, monkeypatch):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path))
    done = await minedraft("models", "--json")
    models = json.loads(done.out)
    assert set(models["default"]) == {"target", "draft"}
    assert models["default"]["target"].startswith(str(tmp_path))
    assert {entry["name"] for entry in models["models"]} >= {"smollm2-135m-instruct"}


def test_output_that_cannot_be_written_is_told_in_one_line():
    command = [sys.executable, "-m", "minedraft.cli.main", "models", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (1, "minedraft: [Errno 28] No space left on device\n")
