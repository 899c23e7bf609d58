"""What stands still is told from what is idle, from what moves, and from a watcher that did not look."""

from __future__ import annotations

from minedraft.core.liveness.stall import Stall


def test_time_counts_while_the_count_stands_still() -> None:
    stall = Stall(longest_gap_s=1.0)
    assert [stall.look(now_s, 7, is_idle=False) for now_s in (10.0, 10.5, 11.5)] == [0.0, 0.5, 1.5]


def test_a_count_that_moves_starts_it_anew_however_slowly() -> None:
    stall = Stall(longest_gap_s=1.0)
    looks = [stall.look(float(now_s), now_s // 3, is_idle=False) for now_s in range(300)]
    assert max(looks) == 2.0


def test_nothing_has_to_move_while_idle() -> None:
    stall = Stall(longest_gap_s=1.0)
    assert [stall.look(float(now_s), 7, is_idle=True) for now_s in range(100)] == [0.0] * 100


def test_a_watcher_that_was_stopped_has_not_seen_it_stand_still() -> None:
    stall = Stall(longest_gap_s=1.0)
    stall.look(0.0, 7, is_idle=False)
    assert stall.look(3600.0, 7, is_idle=False) == 1.0
