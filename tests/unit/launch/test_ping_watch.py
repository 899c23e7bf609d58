from minedraft.launch.ping_watch import PingWatch


def looks(watch: PingWatch, until_s: float, from_s: float = 0.0, step_s: float = 0.5) -> float | None:
    """Look every half second and return when the process is first overdue."""
    now_s = from_s
    while now_s <= until_s:
        if watch.is_overdue(now_s):
            return now_s
        now_s += step_s
    return None


def test_a_process_is_watched_from_ready_to_stopping():
    watch = PingWatch(5.0)
    assert looks(watch, 1000) is None  # it has said nothing yet
    watch.hear("READY=1\nSTATUS=ready: tiny")
    assert (watch.is_ready, watch.status) == (True, "ready: tiny")
    assert looks(watch, 1100, from_s=1000) == 1005
    watch.hear("STOPPING=1")
    assert looks(watch, 2000, from_s=1006) is None


def test_each_ping_starts_the_time_again():
    watch = PingWatch(5.0)
    watch.hear("READY=1")
    for second in range(0, 40, 4):
        assert looks(watch, second + 3.5, from_s=second) is None
        watch.hear("WATCHDOG=1")
    assert looks(watch, 100, from_s=40) == 45
    assert watch.describe() == "no progress for 5 s"


def test_words_are_no_sign_of_life():
    watch = PingWatch(5.0)
    watch.hear("READY=1")
    for second in range(20):
        watch.hear(f"STATUS={second}\nEXTEND_TIMEOUT_USEC=99000000\nBARRIER=1")
        if looks(watch, second + 0.5, from_s=second) is not None:
            break
    assert second == 5


def test_a_start_is_watched_by_what_it_asked_for():
    watch = PingWatch(5.0)
    watch.hear("EXTEND_TIMEOUT_USEC=60000000")
    assert looks(watch, 50) is None
    watch.hear("EXTEND_TIMEOUT_USEC=60000000")
    assert looks(watch, 500, from_s=50.5) == 110.5


def test_a_watcher_that_was_stopped_itself_accuses_nobody():
    watch = PingWatch(5.0)
    watch.hear("READY=1")
    assert not watch.is_overdue(0.0)
    assert not watch.is_overdue(3600.0)
    watch.hear("WATCHDOG=1")
    assert looks(watch, 3604.5, from_s=3600.5) is None


def test_without_a_limit_nothing_is_watched_and_nonsense_is_ignored():
    watch = PingWatch(0.0)
    for message in ("READY=1", "EXTEND_TIMEOUT_USEC=1", "EXTEND_TIMEOUT_USEC=-1", "EXTEND_TIMEOUT_USEC=x", "", "="):
        watch.hear(message)
    assert looks(watch, 10_000) is None
