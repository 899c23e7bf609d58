import os
import re
from pathlib import Path

import pytest

from minedraft.device import Device
from minedraft.launch import placement
from minedraft.launch.launcher import worker_flags
from minedraft.launch.placement import cores_beside, divide_memory, find_hang_timeout_s, tell_unused_gpus
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings
from minedraft.types import Role

CORES = sorted(os.sched_getaffinity(0))
GB = 1_000_000_000
ONE_CARD = {"target_device": "cuda:0", "draft_device": " CUDA "}


@pytest.fixture
def models(tmp_path) -> dict[str, Path]:
    """A target of 16 GB in two files, a drafter of 0.5 GB; no disk holds them."""
    folders = {"target": tmp_path / "t", "draft": tmp_path / "d"}
    files = {"target": {"a.safetensors": 10 * GB, "b.safetensors": 6 * GB}, "draft": {"model.safetensors": GB // 2}}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "other.bin").write_bytes(b"0" * 99)
        for file, size in files[name].items():
            with (folder / file).open("wb") as sparse:
                sparse.truncate(size)
    return folders


def shares(settings: Settings) -> tuple[float | None, float | None]:
    divided = divide_memory(settings)
    return divided.target_memory_share, divided.draft_memory_share


def test_two_workers_on_one_gpu_divide_it_by_the_sizes_of_their_models(models):
    settings = load_settings({**models, **ONE_CARD})
    assert shares(settings) == (round(0.85 * 18 / 20.5, 4), round(0.85 * 2.5 / 20.5, 4))
    flags = worker_flags(divide_memory(settings), Role.DRAFTER, "unix:/d.sock")
    assert flags[flags.index("--memory-share") + 1] == "0.1037"


def test_a_share_that_was_given_leaves_the_rest_to_the_other(models):
    assert shares(load_settings({**models, **ONE_CARD, "target_memory_share": 0.6})) == (0.6, 0.34)
    assert shares(load_settings({**models, **ONE_CARD, "draft_memory_share": 0.2})) == (0.68, 0.2)
    given = {"target_memory_share": 0.3, "draft_memory_share": 0.2}
    assert shares(load_settings({**models, **ONE_CARD, **given})) == (0.3, 0.2)


@pytest.mark.parametrize(
    "flags",
    [
        {"draft_device": "cuda:1"},
        {"draft_device": "cpu"},
        {"target_device": "cpu", "draft_device": "cpu"},
        {"mode": "ar"},
        {"target_address": "unix:/v.sock"},
        {"draft_method": "ngram", "draft": None},
    ],
)
def test_nothing_is_divided_where_each_worker_has_its_device_or_there_is_one_model(models, flags):
    assert shares(load_settings({**models, **ONE_CARD, **flags})) == (None, None)


@pytest.mark.parametrize(
    ("gpu", "cpu", "role"), [("target", "draft", Role.VERIFIER), ("draft", "target", Role.DRAFTER)]
)
def test_a_worker_on_a_gpu_keeps_off_the_cores_of_the_other(gpu, cpu, role):
    first, *others = CORES
    settings = load_settings({f"{gpu}_device": "cuda:0", f"{cpu}_device": f"cpu:{first}"})
    assert cores_beside(settings, role) == tuple(others)
    assert cores_beside(settings, next(other for other in Role if other is not role)) == (), "it pins itself"
    settings = load_settings({f"{gpu}_device": "cuda:0", f"{cpu}_device": "cpu"})
    assert cores_beside(settings, role) == (), "no core is left, so it shares them"


def test_two_gpus_and_a_worker_elsewhere_leave_every_core():
    assert cores_beside(load_settings({"target_device": "cuda:0", "draft_device": "cuda:1"}), Role.VERIFIER) == tuple(
        CORES
    )
    elsewhere = {"target_device": "cuda:0", "draft_device": f"cpu:{CORES[0]}", "draft_address": "unix:/d.sock"}
    assert cores_beside(load_settings(elsewhere), Role.VERIFIER) == ()


@pytest.mark.parametrize(
    ("num_gpus", "said"),
    [(1, "has a GPU, .*--target-device cuda:0 --draft-device cuda:0"), (8, "has 8 GPUs, .*--draft-device cuda:1")],
)
def test_gpus_that_nobody_asked_for_are_told(monkeypatch, num_gpus, said):
    monkeypatch.setattr(placement, "count_gpus", lambda: num_gpus)
    hint = tell_unused_gpus(load_settings({}))
    assert hint is not None
    assert re.search(said, hint)


def test_nothing_is_told_where_devices_were_chosen_or_there_is_no_gpu(monkeypatch):
    assert placement.count_gpus() > 0 or tell_unused_gpus(load_settings({})) is None
    monkeypatch.setattr(placement, "count_gpus", lambda: 2)
    assert tell_unused_gpus(load_settings({"target_device": "cpu:0"})) is None
    both = {"target_address": "unix:/v", "draft_address": "unix:/d"}
    assert tell_unused_gpus(load_settings(both)) is None


@pytest.mark.parametrize(
    ("given", "cores"),
    [
        ({"target_device": "cpu:0,3", "draft_device": "cpu:1"}, "cpu:0-1,3"),
        ({"target_device": "cpu", "draft_device": "cpu:1"}, str(Device("cpu", tuple(CORES)))),
        ({"target_device": "cpu:0", "draft_device": "cpu:1", "keep_cores": True}, None),
        ({"target_device": "cpu:0", "draft_device": "cpu:1", "draft_address": "unix:/d.sock"}, None),
        ({"target_device": "cpu:0", "draft_device": "cuda:0"}, None),
    ],
)
def test_each_worker_may_have_the_cores_of_both_that_this_launcher_starts(given, cores, models):
    settings = Settings.model_validate({**models, **given})
    for role in settings.own_workers:
        flags = worker_flags(settings, role, "unix:/w.sock")
        assert (flags[flags.index("--max-device") + 1] if "--max-device" in flags else None) == cores


@pytest.mark.parametrize(("given_s", "on_gpu_s"), [(5.0, 30.0), (60.0, 60.0), (0.0, 0.0)])
def test_a_worker_on_a_gpu_has_time_to_compile(given_s, on_gpu_s):
    settings = load_settings({"target_device": "cuda:0", "draft_device": "cpu:0", "hang_timeout_s": given_s})
    assert find_hang_timeout_s(settings, "verifier") == on_gpu_s
    assert find_hang_timeout_s(settings, "drafter") == find_hang_timeout_s(settings, "scheduler") == given_s
