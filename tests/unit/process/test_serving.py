"""The event loop of a process that serves: which one it is, and what the garbage collector no longer looks at."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
import uvloop

from minedraft.process.serving import run_serving


@pytest.fixture(autouse=True)
def leave_the_rest_in_sight() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_loaded_before_is_out_of_the_collectors_sight() -> None:
    loaded, made = ["weights"], []

    async def serve() -> list[int]:
        made.append(["request"])
        return [id(one) for one in gc.get_objects()]

    in_sight = run_serving(serve())
    assert id(loaded) not in in_sight
    assert id(made[0]) in in_sight


def test_it_serves_in_uvloop_and_returns_the_result() -> None:
    async def serve() -> type[asyncio.AbstractEventLoop]:
        return type(asyncio.get_running_loop())

    assert run_serving(serve()) is uvloop.Loop
