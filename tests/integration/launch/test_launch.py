"""The launcher as a real process tree: starts, answers, stops, and leaves nothing, however it ends."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minedraft import Client, SamplingParams
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, MineDraftError
from minedraft.text.tokenizer import Tokenizer
from tests.fakes.workers import continuation
from tests.integration.launch.launched import PROMPT, client_state, greedy
from tests.support.processes import Elapsed, until
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import FAKE, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_it_starts_answers_and_stops_at_sigterm(start):
    launched = start()
    words = [" ".join(child.cmdline()) for child in psutil.Process(launched.process.pid).children()]
    assert sum("verifier" in line.split() for line in words) == sum("drafter" in line.split() for line in words) == 1
    with Client(launched.address, timeout_s=60) as client:
        assert list(client.complete(PROMPT, greedy(30)).token_ids) == continuation(PROMPT, 30)
        assert client.status().state == "serving"
    sockets = list(launched.folder.glob("run/**/*.sock"))
    assert len(sockets) == 4, "the workers', the clients' and the launcher's own"
    assert all(path.stat().st_mode & 0o077 == 0 for path in sockets)
    assert launched.end(signal.SIGTERM)[0] == 0


def test_the_first_signal_lets_live_answers_finish(start):
    launched = start()
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(200))
        tokens = list(next(stream).token_ids)
        launched.process.send_signal(signal.SIGINT)
        tokens += [token_id for piece in stream for token_id in piece.token_ids]
    assert tokens == continuation(PROMPT, 200)
    assert launched.end()[0] == 0


def test_under_nohup_a_hang_up_changes_nothing(start):
    launched = start(prefix=("nohup",))
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(200))
        next(stream)
        launched.process.send_signal(signal.SIGHUP)
        for _ in stream:
            pass
        assert client.status().state == "serving"
        assert client.complete(PROMPT, greedy(3)).token_ids
    assert launched.end(signal.SIGTERM)[0] == 0


def test_the_second_signal_ends_live_answers_within_two_seconds(start):
    launched = start("--drain-timeout-s", "600")
    with Client(launched.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(4000))
        next(stream)
        launched.process.send_signal(signal.SIGTERM)
        until(lambda: client.status().state == "draining", 30, "draining")
        elapsed = Elapsed()
        launched.process.send_signal(signal.SIGTERM)
        with pytest.raises(MineDraftError):
            list(stream)
        code, _ = launched.end()
    assert elapsed.seconds < 2.5
    assert code == -signal.SIGTERM  # what a shell calls 128 + 15


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_answers_go_on_with_another_verifier_and_no_token_is_lost_or_repeated(start, signum):
    launched = start("--mode", "minedraft", "--hang-timeout-s", "2")
    with Client(launched.address, timeout_s=60) as client:
        streams = [client.generate([n, *PROMPT], greedy(200)) for n in range(3)]
        tokens = [list(next(stream).token_ids) for stream in streams]
        old = launched.child("verifier")
        old.send_signal(signum)
        until(lambda: client_state(client) == "recovering", 30, "recovering")
        late = client.generate(PROMPT, greedy(9))
        for stream, so_far in zip(streams, tokens, strict=True):
            so_far += [token_id for piece in stream for token_id in piece.token_ids]
        assert tokens == [continuation([n, *PROMPT], 200) for n in range(3)]
        assert [token_id for piece in late for token_id in piece.token_ids] == continuation(PROMPT, 9)
        assert launched.child_is_new("verifier", old)
        status = client.status()
        assert (status.state, status.replays, status.worker_rejoins) == ("serving", 3, 1)
        assert sum(status.worker_losses.values()) == 1
    code, said = launched.end(signal.SIGTERM)
    assert code == 0
    assert said.count("verifier lost, requests wait until it is back") == 1


def test_a_start_that_fails_with_the_workers_up_tells_its_reason_once(start):
    launched = start("--max-model-len", "8192", is_ready=False)
    code, said = launched.end()
    assert code == EXIT_CONFIG
    assert said.count("max_model_len is 8192") == said.count("scheduler |") == 1


def test_a_worker_that_was_named_and_is_not_there_is_told_while_waiting(start, tmp_path):
    model = str(tmp_path / "model")
    launched = start(
        "--target", model, "--draft", model, "--target-address", "127.0.0.1:1", "--load-timeout-s", "1",
        is_ready=False,
    )  # fmt: skip
    code, said = launched.end()
    assert code == EXIT_INTERNAL
    assert "verifier: no answer at 127.0.0.1:1 yet" in said


def test_a_signal_while_loading_ends_it_within_two_seconds(start):
    launched = start(is_ready=False)
    until(lambda: len(psutil.Process(launched.process.pid).children()) == 3, 30, "three children")
    elapsed = Elapsed()
    code, _ = launched.end(signal.SIGTERM)
    assert elapsed.seconds < 2
    assert code in (0, -signal.SIGTERM)  # 0 where it had become ready in that moment


def test_a_second_service_on_the_same_socket_is_refused_and_the_first_goes_on(start):
    first = start()
    second = start(is_ready=False)
    code, said = second.end()
    assert code == EXIT_CONFIG
    assert re.search(r"listen is .*m\.sock.*: process \d+ is listening there", said)
    with Client(first.address, timeout_s=60) as client:
        assert client.complete(PROMPT, greedy(3)).token_ids


@pytest.fixture
def external(tmp_path) -> Iterator[list[str]]:
    """Flags that name two workers which run already; they must still run at the end."""
    folder, model = tmp_path / "ext", str(tmp_path / "model")
    folder.mkdir()
    with (
        worker("verifier", folder, "--model", model, program=FAKE) as verifier,
        worker("drafter", folder, "--model", model, program=FAKE) as drafter,
    ):
        yield ["--target", model, "--target-address", verifier.address, "--draft-address", drafter.address]
        assert (verifier.poll(), drafter.poll()) == (None, None)


def test_workers_that_run_already_are_used_and_left_running(start, external):
    for _ in range(2):  # a second scheduler starts a new epoch on the same workers
        launched = start(*external)
        with Client(launched.address, timeout_s=60) as client:
            assert list(client.complete(PROMPT, greedy(12)).token_ids) == continuation(PROMPT, 12)
        assert launched.end(signal.SIGTERM)[0] == 0


def test_a_second_service_on_the_same_workers_is_refused_and_the_first_goes_on(start, external, tmp_path):
    first = start(*external)
    with Client(first.address, timeout_s=60) as client:
        stream = client.generate(PROMPT, greedy(2000))
        tokens = list(next(stream).token_ids)
        code, said = start(*external, "--listen", f"unix:{tmp_path}/run/n.sock", is_ready=False).end()
        assert code == EXIT_CONFIG
        assert re.search(r"verifier address is .*in use by the scheduler with process id \d+", said), said
        tokens += [token_id for piece in stream for token_id in piece.token_ids]
        assert tokens == continuation(PROMPT, 2000)
    assert first.end(signal.SIGTERM)[0] == 0


def test_real_workers_with_a_real_model_answer_what_the_target_says(start, tmp_path):
    target = make_tiny_model(tmp_path / "target")
    draft = make_tiny_model(tmp_path / "draft", layers=1, seed=1)
    launched = start(
        "--target", str(target), "--draft", str(draft), "--dtype", "float32", "--num-blocks", "256",
        "--target-device", "cpu", "--draft-device", "cpu", module="minedraft.cli.launch",
    )  # fmt: skip
    with Client(launched.address, timeout_s=60) as client:
        answers = client.complete_all("The small model drafts", SamplingParams(max_new_tokens=24, ignore_eos=True, n=2))
        assert answers[0].token_ids == answers[1].token_ids == _reference(target, "The small model drafts", 24)
        seeded = SamplingParams(max_new_tokens=24, temperature=1.0, seed=5)
        assert client.complete("Hello", seeded).token_ids == client.complete("Hello", seeded).token_ids
        *begun, last = Tokenizer.load(target).encode("🎉")
        assert client.complete(begun, SamplingParams(max_new_tokens=1, logit_bias={last: 100.0})).text == "🎉"
    assert launched.end(signal.SIGTERM)[0] == 0


def _reference(folder: Path, prompt: str, num_tokens: int) -> tuple[int, ...]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt_ids = torch.tensor([Tokenizer.load(folder).encode(prompt)])
    out = model.generate(
        prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return tuple(out[0, prompt_ids.shape[1] :].tolist())
