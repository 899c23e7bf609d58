"""The runner of the matrix: its order, its budget, its file, and a small one on services with fake workers."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from minedraft import AsyncClient
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.runner import BenchConfig, BenchRun
from minedraft.errors import ConfigError
from minedraft.types import Mode
from scripts.lib.matrix.main import Matrix, MatrixOptions
from scripts.lib.matrix.plan import Axes, Setting, describe_left, fit_into
from scripts.lib.matrix.store import Store, median_of
from tests.fakes.service import fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier

AXES = Axes(["small", "large"], ["chat", "code"], [4, 1], [1, 2], [0.0, 0.8], [2, 1])
BASE = Setting("small", "chat", 4, 1, 0.0, 2)
SD = BenchConfig(Mode.SD, 4, 2)


def test_the_base_comes_first_then_one_axis_after_the_other_then_all() -> None:
    order = AXES.in_order()
    assert len(order) == 2 * 2 * 2 * 2 * 2 * 2
    assert [name for name, _ in itertools.groupby(order.values())] == [
        "base", "k", "m", "temperature", "n", "k and temperature", "m and temperature", "everything"
    ]  # fmt: skip
    assert list(order)[:5] == [
        BASE,
        Setting("large", "chat", 4, 1, 0.0, 2),
        Setting("small", "code", 4, 1, 0.0, 2),
        Setting("large", "code", 4, 1, 0.0, 2),
        Setting("small", "chat", 4, 1, 0.0, 1),
    ]
    sampled = [setting for setting, name in order.items() if name == "n"]
    assert {(setting.samples, setting.temperature) for setting in sampled} == {(2, 0.8)}, "samples differ if hot"


def test_what_does_not_fit_is_left_out_and_said() -> None:
    order = AXES.in_order()
    fitting, left = fit_into(order, 7.0, lambda setting: 10.0 if setting.size == 1 else 1.0)
    assert (len(fitting), len(left)) == (7, 57)
    fitting, left = fit_into(order, 11.0, lambda setting: 10.0 if setting.size == 1 else 1.0)
    assert len(fitting) == 8, "a short one after a long one that does not fit is not taken before it"
    assert describe_left(order, left)[:2] == ["m: 4 of 4 settings left out", "temperature: 4 of 4 settings left out"]
    assert describe_left(order, []) == []


def test_a_setting_has_sd_with_m_and_with_2m_and_ar_on_one_device_and_on_both() -> None:
    labels = [config.label for config in BASE.configs(can_share_cores=True)]
    assert labels == ["ar m=8 on the verifier's device", "ar m=8", "sd m=4 k=2", "sd m=8 k=2", "minedraft m=4 k=2"]
    assert [config.label for config in BASE.configs(can_share_cores=False)] == labels[1:]
    assert (BASE.num_prompts(1), Setting("a", "b", 4, 3, 0.8, 2).num_prompts(2)) == (8, 5)


def a_run(rate: float) -> BenchRun:
    values = {"tokens_per_s": rate, "accepted_len_histogram": [1, 2]}
    return BenchRun(values, {"output_throughput": rate, "input_lens": [3, 4], "errors": ["", ""]})


def test_the_file_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    store = Store(path, {"repeats": 2})
    for rate in (1 / 3, 30.0):
        store.add(BASE, SD, a_run(rate))
    store.used_s = 12.0
    store.write({"machine": {}})
    again = Store(path, {"repeats": 2})
    assert [run.values["tokens_per_s"] for run in again.row(BASE, SD).runs] == [0.333333, 30.0]
    assert again.rates("small") == {4: pytest.approx((0.333333 + 30) / 2)}
    assert (again.rates("large"), again.used_s) == ({}, 12.0)
    again.write({"machine": {}})
    content = json.loads(path.read_text())
    (table,) = content["tables"]
    assert (table["pair"], table["size"], table["input_lens"]) == ("small", 4, [3, 4])
    assert content["metrics"] == ["tokens_per_s", "accepted_len_histogram"]
    assert table["rows"][0]["runs"] == [[0.333333, [1, 2]], [30.0, [1, 2]]], "names and vLLM's keys would be most of it"
    assert median_of(content, table["rows"][0], "tokens_per_s") == pytest.approx((0.333333 + 30) / 2)
    assert not path.with_name("matrix.json.part").exists()


def test_a_file_of_other_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    Store(path, {"repeats": 2}).write({})
    with pytest.raises(ConfigError, match="has runs with other options"):
        Store(path, {"repeats": 2, "seed": 1})
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"must be a result of scripts/bench/matrix: KeyError 'options'"):
        Store(path, {"repeats": 2})


PROMPTS = {"chat": [BenchPrompt("chat", "hello")], "code": [BenchPrompt("code", "def f"), BenchPrompt("code", "x = 1")]}
SMALL = Axes(["small"], list(PROMPTS), [2], [1, 2], [0.8], [1, 2])


class Services:
    """Starts services with fake workers, and counts them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened: list[str] = []

    @asynccontextmanager
    async def __call__(self, pair: str) -> AsyncIterator[AsyncClient]:
        self.opened.append(pair)
        verifier = FakeVerifier(num_blocks=1024, max_model_len=2048)
        drafter = FakeDrafter(num_blocks=1024, max_model_len=2048)
        flags = {"verifier": verifier, "drafter": drafter, "max_batch_size": 2, "allow_configure": True}
        folder = self._folder / str(len(self.opened))
        folder.mkdir()
        async with fake_service(folder, **flags) as service, AsyncClient(service.address) as client:
            yield client


def a_matrix(folder: Path, services: Services, repeats: int = 2) -> Matrix:
    options = MatrixOptions(max_new_tokens=5, repeats=repeats, is_natural=False)
    return Matrix(services, PROMPTS, options, Store(folder / "matrix.json", options.to_json()), {})


async def test_a_small_matrix_is_measured_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    services, order = Services(tmp_path), SMALL.in_order()
    assert len(order) == 8
    seconds = itertools.count()
    first = a_matrix(tmp_path, services)
    left = await first.run(order, 400.0, lambda: next(seconds) * 100.0)  # each look at the clock takes 100 s
    assert 0 < len(left) < 8
    content = json.loads((tmp_path / "matrix.json").read_text())
    assert content["left_out"] == describe_left(order, left)
    assert await a_matrix(tmp_path, services).run(order, 1e6, lambda: 0.0) == []
    assert services.opened == ["small", "small"], "one service for each start"
    content = json.loads((tmp_path / "matrix.json").read_text())
    assert content["left_out"] == []
    for table in content["tables"]:
        labels = [row["config"]["label"] for row in table["rows"]]
        drafted = [f"{way} k={k}" for k in (1, 2) for way in ("sd m=2", "sd m=4", "minedraft m=2")]
        assert sorted(labels) == sorted(["ar m=4", *drafted]), "ar once for all k"
        for row in table["rows"]:
            assert len(row["runs"]) == 2
            assert all(len(values) == len(content["metrics"]) for values in row["runs"])
    third = await a_matrix(tmp_path, services).run(order, 1e6, lambda: 0.0)
    assert (third, len(services.opened)) == ([], 2), "nothing is left to measure, and no service is started"


async def test_more_repeats_later_add_the_runs_that_are_missing(tmp_path: Path) -> None:
    services, order = Services(tmp_path), SMALL.in_order()
    assert await a_matrix(tmp_path, services, repeats=1).run(order, 1e6, lambda: 0.0) == []
    before = json.loads((tmp_path / "matrix.json").read_text())["tables"]
    assert await a_matrix(tmp_path, services, repeats=2).run(order, 1e6, lambda: 0.0) == []
    after = json.loads((tmp_path / "matrix.json").read_text())["tables"]
    rows = [
        (old, new)
        for one, two in zip(before, after, strict=True)
        for old, new in zip(one["rows"], two["rows"], strict=True)
    ]
    assert rows
    for old, new in rows:
        assert (len(old["runs"]), len(new["runs"])) == (1, 2)
        assert new["runs"][0] == old["runs"][0], "the first run is kept"
    assert await a_matrix(tmp_path, services, repeats=1).run(order, 1e6, lambda: 0.0) == [], "there are more than that"
