"""The plugin's numbers, from the engine core's file to the route of the API server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minedraft.vllm.monitor.status_file import StatusFile, read_statuses, status_folder
from minedraft.vllm.monitor.status_route import StatusRoute


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


def test_only_this_user_can_enter_the_folder():
    assert status_folder().stat().st_mode & 0o777 == 0o700


def test_an_engines_statuses_are_found_by_rank_until_they_are_removed():
    alone, first, second, other = (StatusFile(name) for name in ("17", "18_dp0", "18_dp1", "180"))
    for number, file in enumerate((alone, first, second, other)):
        file.write({"steps": number})
    assert read_statuses("17") == {"0": {"steps": 0}}
    assert read_statuses("18") == {"0": {"steps": 1}, "1": {"steps": 2}}
    assert read_statuses("18_dp1") == read_statuses("18")
    second.remove()
    second.remove()
    assert read_statuses("18") == {"0": {"steps": 1}}


def test_a_file_that_is_no_status_is_left_out():
    (status_folder() / "17.json").write_text("{")
    assert read_statuses("17") == {}


def test_the_route_shows_the_engine_that_the_server_serves():
    routes: dict[str, Any] = {}
    app = SimpleNamespace(add_api_route=lambda path, call, **options: routes.update({path: call}))
    route = StatusRoute()
    route.attach_router(app)
    assert routes["/minedraft/status"]() == {"engines": {}}
    client = SimpleNamespace(vllm_config=SimpleNamespace(instance_id="17"))
    asyncio.run(route.init_state(client, None, None))
    StatusFile("17").write({"steps": 5})
    assert routes["/minedraft/status"]() == {"engines": {"0": {"steps": 5}}}
