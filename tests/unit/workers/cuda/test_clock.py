"""Forwards are measured on the clock of their device. The events here are fakes: no GPU has run this."""

from __future__ import annotations

import time

import pytest
import torch

from minedraft_workers.clock import EventClock, HostClock, clock_for


class Gpu:
    """A stream: kernels are queued by the host and done one after another, when somebody waits for an event."""

    def __init__(self) -> None:
        self.queue: list[float | Event] = []
        self.now_ms = 1000.0
        self.num_events = 0

    def launch(self, ms: float) -> None:
        self.queue.append(ms)

    def make_event(self) -> Event:
        self.num_events += 1
        return Event(self)


class Event:
    """What is used of torch's event."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.passed_ms: float | None = None

    def record(self) -> None:
        self.passed_ms = None
        self.gpu.queue.append(self)

    def synchronize(self) -> None:
        while self.passed_ms is None:
            work = self.gpu.queue.pop(0)
            if isinstance(work, Event):
                work.passed_ms = self.gpu.now_ms
            else:
                self.gpu.now_ms += work

    def elapsed_time(self, end: Event) -> float:
        assert self.passed_ms is not None, "torch raises for an event that has not passed"
        assert end.passed_ms is not None, "torch raises for an event that has not passed"
        return end.passed_ms - self.passed_ms


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def clock(gpu: Gpu) -> EventClock:
    return EventClock(gpu.make_event)


def test_forwards_are_what_the_device_needs_for_them_and_not_what_is_between(gpu: Gpu, clock: EventClock) -> None:
    clock.start()
    for ms in (5.0, 1.5):
        with clock.forward():
            gpu.launch(ms)
        gpu.launch(0.25)  # sampling
    assert clock.finish() == 6_500_000


def test_a_command_that_copies_nothing_to_the_host_leaves_nothing_to_the_next(gpu: Gpu, clock: EventClock) -> None:
    clock.start()
    with clock.forward():
        gpu.launch(20.0)
    gpu.launch(1.0)
    assert clock.finish() == 20_000_000
    assert gpu.queue == [], "the device is done before the reply"
    clock.start()
    with clock.forward():
        gpu.launch(3.0)
    assert clock.finish() == 3_000_000


def test_what_a_refused_command_has_left_is_not_the_next_one_s(gpu: Gpu, clock: EventClock) -> None:
    clock.start()
    with clock.forward():
        gpu.launch(7.0)
    with pytest.raises(RuntimeError), clock.forward():
        raise RuntimeError("refused")
    clock.start()
    assert clock.finish() == 0


def test_events_are_used_again(gpu: Gpu, clock: EventClock) -> None:
    for num_forwards in (1, 4, 4, 2):
        clock.start()
        for _ in range(num_forwards):
            with clock.forward():
                gpu.launch(1.0)
        assert clock.finish() == num_forwards * 1_000_000
    assert gpu.num_events == 1 + 2 * 4


def test_on_the_cpu_it_is_the_host_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10, 15, 100, 107, 200, 1000, 1001])
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(times))
    clock = clock_for(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    clock.start()
    with clock.forward():
        pass
    with clock.forward():
        pass
    with pytest.raises(RuntimeError), clock.forward():
        raise RuntimeError("refused")
    assert clock.finish() == 12
    clock.start()
    with clock.forward():
        pass
    assert clock.finish() == 1
