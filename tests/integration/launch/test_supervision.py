"""What the launcher does about processes that die or hang, and what is left when it is killed itself."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from minedraft import Client
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, MineDraftError, Unavailable
from tests.fakes.workers import continuation
from tests.integration.launch.launched import PROMPT, answers, client_state, greedy
from tests.support.processes import is_gone, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "closed"])
def test_what_a_terminal_sends_to_all_reaches_the_launcher_alone(start, signum):
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip("this signal is ignored here, as under nohup")
    launched = start(prefix=("setsid",))
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(200))
        tokens = list(next(stream).token_ids)
        os.killpg(launched.process.pid, signum)  # as a terminal does
        tokens += [token_id for piece in stream for token_id in piece.token_ids]
    assert tokens == continuation(PROMPT, 200)
    assert launched.end()[0] == 0


@pytest.mark.parametrize("num_children", [1, 3])
def test_a_launcher_that_is_killed_while_loading_leaves_nothing(start, num_children):
    launched = start(is_ready=False)
    launcher = psutil.Process(launched.process.pid)
    until(lambda: len(launcher.children()) >= num_children, 30, "children")
    children = launcher.children()
    launched.process.kill()
    launched.process.communicate()
    for child in children:  # those that have just begun notice as soon as they can
        until(lambda child=child: is_gone(child), 30, f"the end of process {child.pid}")


def test_a_killed_launcher_takes_everything_with_it(start):
    launched = start()
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(4000))
        next(stream)
        launched.process.kill()
        with pytest.raises(MineDraftError):
            list(stream)
    launched.process.communicate()  # the fixture checks that children, sockets and folders go


def test_a_killed_scheduler_fails_waiters_at_once_and_is_started_again_at_its_address(start):
    launched = start()
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(4000))
        next(stream)
        workers = launched.child("verifier").pid, launched.child("drafter").pid
        launched.child("minedraft.server").kill()
        with pytest.raises(Unavailable):
            list(stream)
        until(lambda: answers(client), 40, "an answer")
        assert workers == (launched.child("verifier").pid, launched.child("drafter").pid)
    launched.process.kill()  # the new scheduler cleans up like the first
    _, said = launched.process.communicate()
    assert "scheduler: killed by SIGKILL; restart 1 in 0.5 s\n" in said


def test_a_killed_drafter_is_reported_and_no_answer_fails(start):
    launched = start()
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(200))
        tokens = list(next(stream).token_ids)
        launcher = psutil.Process(launched.process.pid)
        launcher.suspend()  # else another drafter may be there before anybody has looked
        launched.child("drafter").kill()
        tokens += [token_id for piece in stream for token_id in piece.token_ids]
        assert tokens == continuation(PROMPT, 200)
        until(lambda: client.status().state == "degraded", 30, "degraded")
        launcher.resume()
        assert list(client.complete(PROMPT, greedy(9)).token_ids) == continuation(PROMPT, 9)
    code, said = launched.end(signal.SIGTERM)
    assert code == 0
    assert "drafter: killed by SIGKILL" in said
    assert "continuing without drafts" in said


@pytest.mark.parametrize("is_blocked", [True, False], ids=["blocked", "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(start, tmp_path, monkeypatch, is_blocked):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))  # as systemd would: it says "ready" here too
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        Path("/dev/full").open("w") as full,
        blocked_pipe() as (reader, writer),
    ):
        if not is_blocked:
            reader.close()  # it has gone
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        launched = start(is_ready=False, stdout=full, stderr=writer)
        while notified.recv(100) != b"READY=1":
            pass
        with Client(launched.address, timeout_s=60) as client:
            old = launched.child("drafter")
            old.kill()
            until(lambda: launched.child_is_new("drafter", old), 30, "another drafter: the launcher is not blocked")
            assert list(client.complete(PROMPT, greedy(9)).token_ids) == continuation(PROMPT, 9)
        launched.process.terminate()
        assert launched.process.wait(60) == 0


@contextmanager
def blocked_pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The two ends of a pipe that is full."""
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb") as reader, open(write_fd, "wb") as writer:
        os.set_blocking(write_fd, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write_fd, b"x" * 4096)
        os.set_blocking(write_fd, True)
        yield reader, writer


def test_a_drafter_that_was_stopped_for_a_while_is_taken_back(start):
    launched = start("--mode", "minedraft", "--hang-timeout-s", "0")
    with Client(launched.address, timeout_s=60) as client:
        drafter = launched.child("drafter")
        drafter.suspend()
        until(lambda: client.status().state == "degraded", 30, "pings are not answered")
        assert list(client.complete(PROMPT, greedy(9)).token_ids) == continuation(PROMPT, 9)
        drafter.resume()
        until(lambda: client.status().state == "serving", 30, "taken back")
        answer = client.complete(PROMPT, greedy(30))
        assert list(answer.token_ids) == continuation(PROMPT, 30)
        assert answer.usage.accepted_tokens > 0
    assert launched.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("word", ["drafter", "minedraft.server"])
def test_a_process_that_hangs_is_killed_and_started_again(start, word):
    launched = start("--mode", "minedraft", "--hang-timeout-s", "2")
    with Client(launched.address, timeout_s=60) as client:
        old = launched.child(word)
        old.suspend()
        until(lambda: launched.child_is_new(word, old), 30, f"another {word}")
        until(lambda: client_state(client) == "serving", 40, "serving")
        assert answers(client)
    code, said = launched.end(signal.SIGTERM)
    assert code == 0
    assert "killed: no progress for 2 s; restart 1 in 0.5 s" in said


@pytest.mark.parametrize(("role", "child_code", "code"), [("drafter", 1, EXIT_INTERNAL), ("verifier", 78, EXIT_CONFIG)])
def test_a_worker_that_dies_while_loading_is_named_and_its_reason_told_once(start, tmp_path, role, child_code, code):
    (tmp_path / "model" / "behaviour").write_text(f"{role} {child_code}")
    launched = start(is_ready=False)
    got, said = launched.end(within_s=90)  # it is started three times
    assert got == code
    num_starts = 1 if child_code == EXIT_CONFIG else 3
    assert said.count(f"{role} | the dog ate the weights\n") == said.count("the dog ate the weights") == num_starts
    assert said.count(f"{role}: exit code {child_code}") == num_starts
