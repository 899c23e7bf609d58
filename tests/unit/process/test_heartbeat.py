import asyncio
import contextlib
import time
from dataclasses import dataclass

from minedraft.process.heartbeat import feed_watchdog
from minedraft.sim.virtual_time import run_virtual


@dataclass
class Look:
    is_idle: bool
    count: int


class Pings:
    """A notifier that notes when it is told to ping."""

    def __init__(self, watchdog_s: float | None) -> None:
        self.watchdog_s = watchdog_s
        self.at_s: list[float] = []

    def ping(self) -> None:
        self.at_s.append(asyncio.get_running_loop().time())


def pings(look, for_s: float = 20.0, watchdog_s: float | None = 4.0) -> list[float]:
    notifier = Pings(watchdog_s)

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await feed_watchdog(notifier, lambda: look(asyncio.get_running_loop().time()))

    run_virtual(main())
    return notifier.at_s


def test_an_idle_process_pings_four_times_within_the_limit():
    assert pings(lambda _: Look(True, 0), for_s=8.5) == [float(second) for second in range(9)]


def test_a_busy_process_pings_while_it_gets_on_and_no_longer():
    assert pings(lambda now_s: Look(False, min(int(now_s / 2), 4))) == [0, 2, 4, 6, 8]


def test_nothing_is_sent_where_nobody_watches():
    assert pings(lambda _: Look(True, 0), watchdog_s=None) == []


def test_a_blocked_event_loop_is_told(monkeypatch, caplog):
    monkeypatch.setattr("minedraft.process.heartbeat._LATE_S", 0.05)
    monkeypatch.setattr("minedraft.process.heartbeat._UNWATCHED_PERIOD_S", 0.001)

    async def main() -> None:
        feeding = asyncio.create_task(feed_watchdog(Pings(None), lambda: Look(True, 0)))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - what must not be done in an event loop
        while not caplog.records:  # noqa: ASYNC110 - a log sets no event
            await asyncio.sleep(0)
        feeding.cancel()

    asyncio.run(main())
    assert "the event loop was blocked" in caplog.text
