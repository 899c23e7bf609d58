"""The metrics page of a real service with tiny models, and what the dashboard asks of it."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import ConfigError
from tests.fakes.service import fake_service
from tests.integration.observe.conftest import ANSWERS, NEW_TOKENS, Observed
from tests.support.processes import free_port

DASHBOARD = Path(__file__).parents[3] / "scripts/grafana/minedraft.json"


def value(page: dict[str, Metric], name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in page.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


@pytest.fixture(scope="session")
def page(observed: Observed) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(observed.page)}


@pytest.mark.slow
def test_the_page_of_a_real_service_counts_its_answers(page: dict[str, Metric]) -> None:
    # The service itself has made an answer before it was ready.
    assert value(page, "vllm:request_success_total", finished_reason="length") == ANSWERS + 1
    assert value(page, "vllm:time_to_first_token_seconds_count") == ANSWERS + 1
    assert value(page, "vllm:generation_tokens_total") >= ANSWERS * NEW_TOKENS
    assert value(page, "vllm:num_requests_running") == value(page, "vllm:num_requests_waiting") == 0
    accepted = value(page, "vllm:spec_decode_num_accepted_tokens_total")
    assert accepted > 0, "the drafter is the target itself"
    positions = page["vllm:spec_decode_num_accepted_tokens_per_pos"].samples
    assert sum(sample.value for sample in positions) == accepted
    assert {sample.labels["position"] for sample in positions} == {"0", "1", "2"}
    assert value(page, "minedraft:mode", mode="minedraft") == 1
    assert value(page, "minedraft:command_seconds_sum", role="verifier") > 0
    assert value(page, "process_resident_memory_bytes") > 0
    assert {sample.labels.get("model_name", "tiny") for family in page.values() for sample in family.samples} == {
        "tiny"
    }


@pytest.mark.slow
def test_every_query_of_the_dashboard_asks_for_exported_metrics(page: dict[str, Metric]) -> None:
    exported = {sample.name for family in page.values() for sample in family.samples}
    # A counter with labels has no sample before the first event.
    exported |= {f"{name}_total" for name, family in page.items() if family.type == "counter"}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 15
    for query in queries:
        names = set(re.findall(r"\b(?:vllm:|minedraft:|process_)\w+", query))
        assert names, query
        assert names <= exported, query


@pytest.mark.slow
def test_the_dashboard_takes_rates_of_what_only_grows_and_of_nothing_else(page: dict[str, Metric]) -> None:
    growing = {f"{name}_total" for name, family in page.items() if family.type == "counter"}
    for name, family in page.items():
        if family.type == "histogram":
            growing |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            names = set(re.findall(r"\b(?:vllm:|minedraft:|process_)\w+", target["expr"]))
            rated = set(re.findall(r"(?:rate|increase)\(((?:vllm:|minedraft:)\w+)\{[^}]*\}\[", target["expr"]))
            assert rated == names & growing, target["expr"]


def test_the_dashboard_is_one_that_grafana_can_place_and_draw() -> None:
    """What Grafana's importer and its grid demand: unique ids, panels inside 24 columns that do not overlap, known
    kinds, the data source as a variable, a letter for each query."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time", "refresh"} <= dashboard.keys()
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"row", "timeseries", "stat", "gauge", "state-timeline", "heatmap"}, panel["title"]
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            letters = [target["refId"] for target in panel["targets"]]
            assert len(set(letters)) == len(letters) > 0


async def test_a_stuck_reader_of_the_page_costs_the_service_nothing(tmp_path: Path) -> None:
    port = free_port()
    async with fake_service(tmp_path, metrics=f"127.0.0.1:{port}") as service, AsyncClient(service.address) as client:
        with socket.create_connection(("127.0.0.1", port)) as stuck:
            stuck.sendall(b"GET /metrics HTT")  # and no more
            answer = await client.complete([1, 2, 3], SamplingParams(max_new_tokens=5))
            assert len(answer.token_ids) == 5


async def test_a_page_whose_name_was_made_to_lead_here_does_not_get_the_metrics(tmp_path: Path) -> None:
    port = free_port()
    async with fake_service(tmp_path, metrics=f"127.0.0.1:{port}"), httpx.AsyncClient() as client:
        answers = [
            await client.get(f"http://127.0.0.1:{port}/metrics", headers={"host": host})
            for host in ("evil.example", f"localhost:{port}")
        ]
    assert [answer.status_code for answer in answers] == [403, 200]
    assert "minedraft:mode" not in answers[0].text


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with fake_service(tmp_path, metrics=f"127.0.0.1:{port}") as service:
            with pytest.raises(ConfigError, match=rf"metrics is '127\.0\.0\.1:{port}': cannot listen there"):
                await service.task
