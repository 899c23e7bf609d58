"""What the door does besides answering: tokens, limits, names, the service's state, the page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx2 as httpx
import pytest

from minedraft import AsyncClient
from minedraft.errors import Unavailable
from minedraft.http.guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from minedraft.http.wire.openapi import schema
from minedraft.security.tokens import TokenFile
from tests.integration.http.conftest import Served, http_door

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "good day"}], "max_tokens": 2}


async def get(served: Served, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(served.url + path, headers=headers)


async def test_the_state_of_the_service(served: Served) -> None:
    assert (await get(served, "/health")).status_code == 200
    assert (await get(served, "/ping")).content == b""
    assert (await get(served, "/ready")).json() == {"state": "serving"}
    assert (await get(served, "/readyz")).status_code == 200
    assert (await get(served, "/load")).json() == {"server_load": 0, "num_running": 0, "num_waiting": 0}
    assert (await get(served, "/version")).json()["version"]
    status = (await get(served, "/status")).json()
    assert [batch["name"] for batch in status["batches"]] == ["A", "B"]
    assert {worker["role"] for worker in status["workers"]} == {"verifier", "drafter"}
    metrics = await get(served, "/metrics")
    assert (metrics.status_code, metrics.json()["error"]["code"]) == (404, 404)


async def test_a_service_that_drains_is_alive_and_not_ready(served: Served) -> None:
    gate = asyncio.Event()
    served.service.verifier.hold = gate.wait
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{served.url}/v1/chat/completions", json=CHAT))
        inner = served.service.server.service
        assert inner is not None
        await served.service.until(lambda: inner._live)
        served.service.server.on_signal()
        await served.service.until(lambda: inner.state == "draining")
        refused = await client.post(f"{served.url}/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "ServiceUnavailableError"
        assert (await get(served, "/ready")).status_code == 503
        assert (await get(served, "/health")).status_code == 200
        gate.set()
        assert (await asking).status_code == 200


async def test_a_service_that_is_gone_is_unavailable(served: Served) -> None:
    served.service.server.end_now()
    await served.service.task
    for path in ("/health", "/ready", "/v1/models"):
        answer = await get(served, path)
        assert answer.status_code == 503, path
        assert answer.json()["error"]["code"] == 503


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/nothing"])
async def test_other_paths_and_methods_are_refused_in_the_same_form(served: Served, path: str) -> None:
    answer = await get(served, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")
    answer = await get(served, "/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, 405)


async def test_a_token_is_needed_under_v1_alone(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("first-secret-of-all\nsecond-secret-of-all\n")
    file.chmod(0o600)
    async with http_door(served.service, TokenFile(file).admits) as door:
        for path in ("/health", "/version", "/", "/openapi.json"):
            assert (await get(door, path)).status_code == 200
        for wrong in (
            "",
            "Bearer",
            "Bearer first",
            "Basic first-secret-of-all",
            "first-secret-of-all",
            "Bearer firstsecret",
        ):
            answer = await get(door, "/v1/models", **({"authorization": wrong} if wrong else {}))
            assert answer.status_code == 401, wrong
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "AuthenticationError"
        for token in ("first-secret-of-all", "second-secret-of-all"):
            assert (await get(door, "/v1/models", authorization=f"Bearer {token}")).status_code == 200
        async with door.openai("second-secret-of-all") as client:
            assert (await client.models.list()).data


async def test_a_request_has_the_name_that_it_came_with(served: Served) -> None:
    assert (await get(served, "/version", **{"x-request-id": "my-own"})).headers["x-request-id"] == "my-own"
    made = [(await get(served, "/version")).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert (await get(served, "/nothing", **{"x-request-id": "a"})).headers["x-request-id"] == "a"


async def test_what_is_too_large_is_refused_before_it_is_read(served: Served) -> None:
    async def endless():
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    async with httpx.AsyncClient() as client:
        url = f"{served.url}/v1/chat/completions"
        for content in (b" " * (MAX_BODY_BYTES + 1), endless()):
            answer = await client.post(url, content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == "RequestTooLargeError"
        answer = await client.get(f"{served.url}/version", headers={"x-long": "a" * (4 * MAX_HEADER_BYTES)})
        assert answer.status_code in (400, 431)
        assert (await client.get(f"{served.url}/version")).status_code == 200


async def test_no_other_page_may_read_answers_unless_it_is_named(served: Served) -> None:
    answer = await get(served, "/version", origin="http://elsewhere.example")
    assert "access-control-allow-origin" not in answer.headers
    async with http_door(served.service, origins=("http://my.example",)) as door:
        answer = await get(door, "/version", origin="http://my.example")
        assert answer.headers["access-control-allow-origin"] == "http://my.example"
        answer = await get(door, "/version", origin="http://elsewhere.example")
        assert "access-control-allow-origin" not in answer.headers
        async with httpx.AsyncClient() as client:
            asked = {"origin": "http://my.example", "access-control-request-method": "POST"}
            answer = await client.options(f"{door.url}/v1/chat/completions", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-methods"]) == (204, "GET, POST")


async def test_no_other_page_may_have_the_devices_work_for_it(served: Served) -> None:
    """A browser asks nobody before it sends text, and keeps only the answer from the page."""
    host = served.url.removeprefix("http://")
    url, content = f"{served.url}/v1/chat/completions", json.dumps(CHAT)
    async with httpx.AsyncClient() as client, http_door(served.service, origins=("http://my.example",)) as door:

        async def status(url: str, **headers: str) -> int:
            return (
                await client.post(url, content=content, headers=headers | {"content-type": "text/plain"})
            ).status_code

        for origin in ("http://elsewhere.example", "http://my.example", "null", f"http://{host}.example"):
            assert await status(url, origin=origin) == 403, origin
        assert (await client.post(url, content=content, headers={"origin": "null"})).json()["error"]["code"] == 403
        assert await status(url) == await status(url, origin=f"http://{host}") == 200
        assert await status(url, origin="https://out.example", **{"x-forwarded-host": "out.example"}) == 200
        assert await status(url.replace(served.url, door.url), origin="http://my.example") == 200


async def test_a_page_whose_name_was_made_to_lead_here_is_refused(served: Served) -> None:
    """DNS rebinding: to the browser it is the same server as before, and may ask and read all."""
    port = served.url.rpartition(":")[2]
    own = f"http://evil.example:{port}"
    for path in ("/", "/status", "/v1/models", "/nothing"):
        answer = await get(served, path, host=f"evil.example:{port}", origin=own)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "PermissionDeniedError"), path
        assert "http_hosts" in answer.json()["error"]["message"]
    for host in ("localhost", "LOCALHOST.:1", f"127.0.0.1:{port}", "127.9.9.9", f"[::1]:{port}"):
        assert (await get(served, "/version", host=host)).status_code == 200, host
    async with http_door(served.service, origins=("*",), hosts="models.example, 10.0.0.1") as door:
        for host in ("models.example", "Models.Example:443", "10.0.0.1:8000", "localhost:1"):
            assert (await get(door, "/version", host=host)).status_code == 200, host
        async with httpx.AsyncClient() as client:
            asked = {"origin": own, "access-control-request-method": "POST", "host": "evil.example"}
            assert (await client.options(f"{door.url}/v1/models", headers=asked)).status_code == 403
    async with http_door(served.service, hosts="*") as door:
        assert (await get(door, "/version", host="any.example")).status_code == 200


async def test_who_calls_this_door_with_grpc_is_told_so(served: Served) -> None:
    address = served.url.removeprefix("http://")
    async with AsyncClient(address, timeout_s=20) as client:
        with pytest.raises(Unavailable, match=f"no answer from {address}: it speaks HTTP, as OpenAI's clients do"):
            await client.status()


async def test_what_is_missing_is_not_called_none(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        for body, said in ((b"nonsense", "body: Invalid JSON"), (b"{}", "model: must be given")):
            answer = await client.post(f"{served.url}/v1/completions", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(said)


async def test_a_program_that_names_no_host_is_answered(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_tokens_and_texts(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        ids = served.service.tokenizer.encode("good day")
        answer = await client.post(f"{served.url}/tokenize", json={"prompt": "good day", "return_token_strs": True})
        assert answer.json()["tokens"] == ids
        assert answer.json()["count"] == len(ids)
        assert answer.json()["max_model_len"] == 2048
        back = await client.post(f"{served.url}/detokenize", json={"tokens": ids})
        assert back.json() == {"prompt": served.service.tokenizer.decode(ids)}
        chat = await client.post(f"{served.url}/tokenize", json={"messages": CHAT["messages"]})
        assert chat.json()["tokens"] == served.service.tokenizer.encode_chat(CHAT["messages"])
        for body in ({}, {"prompt": "a", "messages": []}, {"prompt": "a", "foo": 1}):
            assert (await client.post(f"{served.url}/tokenize", json=body)).status_code == 400
        for tokens in ([-1], [1 << 40], ["a"], None):
            answer = await client.post(f"{served.url}/detokenize", json={"tokens": tokens})
            assert answer.status_code == 400


async def test_the_description_names_every_path_and_refers_to_what_is_there(served: Served) -> None:
    description = (await get(served, "/openapi.json")).json()
    assert description == json.loads(json.dumps(schema()))
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert references <= set(description["components"]["schemas"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"} <= set(description["paths"])


async def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    answer = await get(served, "/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:https?:)?//[a-z]", answer.text)
    assert "innerHTML" not in answer.text  # an answer is text, whatever it contains
