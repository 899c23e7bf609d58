"""The chat page in a headless Chromium: streaming, colours, the state beside it, stopping."""

from __future__ import annotations

import asyncio

import pytest

from minedraft import SamplingParams
from tests.integration.http.browser import browser, has_browser
from tests.integration.http.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IS_READY = "return document.getElementById('facts').textContent.includes('target') && model !== ''"
NOTES = "return [...document.querySelectorAll('.message .note')].map((note) => note.textContent)"
ANSWER = "return [...document.querySelectorAll('.assistant')].at(-1).firstChild?.parentNode.textContent"


@pytest.mark.skipif(not has_browser(), reason="needs chromium and chromedriver")
async def test_a_person_asks_watches_and_stops(served: Served) -> None:
    want = await served.client.complete([{"role": "user", "content": "good day"}], SamplingParams(max_new_tokens=40))
    pool = served.service.verifier.kv.pool

    def use() -> None:
        with browser() as page:
            page.open(served.url)
            page.until(IS_READY, 30)
            page.run("document.getElementById('max_tokens').value = 40")
            page.type("#ask", "good day")
            page.click("#send")
            page.until(f"{NOTES}.length === 1", 30)
            answer = page.run(ANSWER)
            assert answer.startswith(want.text), answer
            assert "drafts accepted" in page.run(NOTES)[0]
            assert page.run("return document.querySelectorAll('.assistant .draft').length") > 0
            assert "minedraft" in page.run("return document.getElementById('mode').textContent")

            page.run("document.getElementById('max_tokens').value = 1900")
            page.type("#ask", "and more")
            page.click("#send")
            page.until("return document.querySelectorAll('.assistant').length === 2", 30)
            page.until("return [...document.querySelectorAll('.assistant')].at(-1).textContent.length > 20", 30)
            page.click("#stop")
            page.until(f"{NOTES}.length === 2", 30)
            page.click("#clear")
            assert page.run("return document.getElementById('chat').children.length") == 0

    served.service.verifier.hold = lambda: asyncio.sleep(0.01)  # so that there is a while to watch and to stop in
    await asyncio.to_thread(use)
    served.service.verifier.hold = None
    await served.service.until(lambda: pool.num_free == pool.num_blocks)
