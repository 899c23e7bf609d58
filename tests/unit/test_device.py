"""Devices as values: one grammar for settings and workers, checked against the cores of this process."""

import os

import pytest

from minedraft.device import Device, count_gpus, format_cores, usable_cores
from minedraft.errors import ConfigError
from minedraft.settings.loading import load_settings, load_worker_settings

CORES = sorted(os.sched_getaffinity(0))


def test_cpu_alone_becomes_every_core_of_this_process():
    assert Device.parse("cpu") == Device("cpu")
    assert str(Device.parse("cpu")) == "cpu"
    assert Device.parse("cpu").here().cores == usable_cores() == tuple(CORES)
    assert str(Device.parse("cpu").here()) == f"cpu:{format_cores(CORES)}"


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("cpu:0", (0,)),
        ("cpu:0-3", (0, 1, 2, 3)),
        (" CPU:7,5 ", (5, 7)),
        ("cpu:0-2,1-4,4095", (0, 1, 2, 3, 4, 4095)),
        ("cpu:007", (7,)),
    ],
)
def test_cores_are_read_as_numbers_ranges_and_lists(text, cores):
    assert Device.parse(text) == Device("cpu", cores)
    assert Device.parse(str(Device.parse(text))) == Device("cpu", cores)


def test_cuda_devices_are_read_by_number():
    assert Device.parse("cuda") == Device("cuda", index=0)
    assert str(Device.parse("cuda:3")) == "cuda:3"


BAD_FORMS = [
    *("", "gpu", "cpu:", "cpu:x", "cpu:1-", "cpu:-1", "cpu:0 1", "cpu:0,", "cpu:0--1", "cpu:٣", f"cpu:{'9' * 5000}"),
    *("cuda:", "cuda:x", "cuda:-1", "cuda:0,1", "cuda:12345", "tpu:0", "cpu:0\n1"),
]
BAD_RANGES = ["cpu:3-1", "cpu:4096", "cpu:0-99999999999"]


@pytest.mark.parametrize("text", BAD_FORMS)
def test_another_form_is_refused_with_the_forms_there_are(text):
    with pytest.raises(ConfigError, match="must be cpu, cpu:0, cpu:0-3, cpu:0,2 or cuda:0") as caught:
        Device.parse(text, "--draft-device")
    assert caught.value.field == "--draft-device"


@pytest.mark.parametrize("text", BAD_RANGES)
def test_a_range_that_no_machine_has_is_refused(text):
    with pytest.raises(ConfigError, match="must ascend and stay below 4096"):
        Device.parse(text)


@pytest.mark.parametrize(
    "text", ["cpu", "cpu:0", "cpu:0-3", "cpu:0,2", " CPU:1 ", "cuda", "cuda:0", "cuda:99", *BAD_FORMS, *BAD_RANGES]
)
def test_the_service_s_settings_take_a_device_where_a_worker_does(text):
    def is_taken(read):
        try:
            read()
        except ConfigError:
            return False
        return True

    worker = {"role": "drafter", "model": "/m", "listen": "unix:/w"}
    by_a_worker = is_taken(lambda: load_worker_settings({**worker, "device": text}))
    assert is_taken(lambda: Device.parse(text)) is by_a_worker
    assert is_taken(lambda: load_settings({"target_device": text})) is by_a_worker
    assert is_taken(lambda: load_settings({"draft_device": text})) is by_a_worker


def test_a_core_of_somebody_else_is_refused_with_those_that_are_ours():
    with pytest.raises(ConfigError, match="core 4094-4095 is not available; this process may use ") as caught:
        Device.parse(f"cpu:{CORES[0]},4094,4095").here("draft_device")
    assert caught.value.field == "draft_device"


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
def test_a_gpu_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match="no GPU found"):
        Device.parse("cuda:0").here()


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        (["nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-modeset"], 1),
        (["nvidia0", "nvidia1", "nvidia12", "kfd"], 3),
        (["nvidiactl", "null"], 0),
        (["kfd"], 1),
        (["dxg"], 1),
    ],
)
def test_gpus_are_counted_whatever_their_numbers(tmp_path, nodes, count):
    for name in nodes:
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == count


def test_core_numbers_are_written_as_ranges():
    assert format_cores([5, 0, 2, 1]) == "0-2,5"
    assert format_cores([]) == ""
