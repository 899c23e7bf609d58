"""`minedraft-launch --http` with real processes and tiny real models."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest

from minedraft import SamplingParams
from minedraft.errors import EXIT_CONFIG, ConfigErrors, StartFailed
from minedraft.local import serve
from minedraft.security.authority import TOKEN_NAME, make_certificates
from minedraft.security.tls import CA_NAME, CERT_NAME, KEY_NAME
from tests.support.processes import free_port, is_gone, until
from tests.support.tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = {"dtype": "float32", "num_blocks": 64, "target_device": "cpu", "draft_device": "cpu", "mode": "minedraft"}
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "target")
    make_tiny_model(folder / "draft", layers=1, seed=1)
    return folder


@pytest.fixture
def port() -> int:
    return free_port()


def test_the_door_opens_with_the_service_and_closes_with_it(models: Path, port: int) -> None:
    service = serve(models / "target", models / "draft", http=f"127.0.0.1:{port}", model_name="tiny", **SMALL)
    with service as client, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as door:
        want = client.complete("Hello", GREEDY)
        made = door.completions.create(
            model="tiny", prompt="Hello", max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
        )
        assert made.choices[0].text == want.text
        strange = httpx.get(f"http://127.0.0.1:{port}/health", headers={"host": "evil.example"})
        assert strange.status_code == 403, "a browser may have been led here by that name"
        processes = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        [http] = [process for process in processes if "minedraft.http.main" in " ".join(process.cmdline())]
        http.kill()  # the launcher starts it again, and the others do not notice
        until(lambda: httpx_state(port) == 200, 30, "the door is open again")
        assert client.complete("Hello", GREEDY).text == want.text
    assert len(processes) == 5
    assert all(is_gone(process) for process in processes)
    assert httpx_state(port) == 0


def test_answers_have_the_form_that_was_asked_for(models: Path, port: int) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "pick", "parameters": schema}}
    asked: dict[str, Any] = {
        "model": "t",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 60,
        "temperature": 0,
    }
    service = serve(models / "target", models / "draft", http=f"127.0.0.1:{port}", model_name="t", **SMALL)
    with service, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as door:
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
        made = door.chat.completions.create(**asked, response_format=wanted)
        assert json.loads(made.choices[0].message.content)["n"] in (1, 22)
        assert made.choices[0].finish_reason == "stop"
        called = door.chat.completions.create(**asked, tools=[tool], tool_choice="required").choices[0]
        assert called.message.tool_calls
        assert all(call.function.name == "pick" for call in called.message.tool_calls)
        assert json.loads(called.message.tool_calls[0].function.arguments)["n"] in (1, 22)
        named = {"type": "function", "function": {"name": "pick"}}
        stream = door.chat.completions.create(**asked, tools=[tool], tool_choice=named, stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        parts = [call for delta in deltas for call in delta.tool_calls or []]
        assert [part.function.name for part in parts if part.function.name] == ["pick"]
        assert {part.index for part in parts} == {0}
        assert json.loads("".join(part.function.arguments for part in parts))["n"] in (1, 22)
        assert not any(delta.content for delta in deltas)
        free = door.chat.completions.create(**asked, tools=[tool]).choices[0]  # the model itself chooses
        stream = door.chat.completions.create(**asked, tools=[tool], tool_choice="auto", stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        told = "".join(delta.content or "" for delta in deltas)
        assert (free.message.content or "") == told
        assert bool(free.message.tool_calls) == any(delta.tool_calls for delta in deltas)


def test_other_hosts_need_tls_and_a_token(models: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="token_file"):
        serve(models / "target", models / "draft", http=f"0.0.0.0:{port}", **SMALL)
    [host] = make_certificates(tmp_path / "certs", ["localhost,127.0.0.1"], days=2)
    files = {"tls_cert": host / CERT_NAME, "tls_key": host / KEY_NAME, "token_file": tmp_path / "certs" / TOKEN_NAME}
    token = files["token_file"].read_text().split()[-1]
    trusted = ssl.create_default_context(cafile=str(host / CA_NAME))
    service = serve(models / "target", models / "draft", token_file=files["token_file"], **SMALL)
    with service, door_process(models, service.address, port, files):
        url = f"https://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/health", trusted), 30, "the door is open")
        assert httpx.get(f"{url}/health", verify=trusted).status_code == 200
        assert httpx.get(f"{url}/v1/models", verify=trusted).status_code == 401
        answer = httpx.get(f"{url}/v1/models", verify=trusted, headers={"authorization": f"Bearer {token}"})
        assert answer.json()["data"][0]["id"] == "target"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_an_address_in_use_is_named_and_nothing_starts(models: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(StartFailed, match=f"127.0.0.1:{port}") as caught:
            serve(models / "target", models / "draft", http=f"127.0.0.1:{port}", **SMALL).__enter__()
    assert caught.value.exit_code == EXIT_CONFIG


@contextmanager
def door_process(models: Path, address: str, port: int, files: dict[str, Path]) -> Iterator[None]:
    """Run the door alone, for a service of its own, at all addresses of this host."""
    command = [sys.executable, "-m", "minedraft.http.main", "--target", str(models / "target"), "--server", address]
    command += [text for name, path in files.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    process = subprocess.Popen([*command, "--listen", f"0.0.0.0:{port}"])
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def answers(url: str, trusted: ssl.SSLContext) -> bool:
    try:
        return httpx.get(url, verify=trusted).status_code == 200
    except httpx.HTTPError:
        return False


def httpx_state(port: int) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code
    except httpx.HTTPError:
        return 0
