"""Which scheduler gets which session."""

from __future__ import annotations

import pytest

from minedraft.errors import StaleRound, WorkerInUse
from minedraft_workers.rounds.tenancy import Tenancy


def take(tenancy: Tenancy, name: str, epoch: int) -> int:
    """Do what a handshake does."""
    number = tenancy.find_free()
    tenancy.announce(number, name, epoch)
    return number


def test_schedulers_get_sessions_of_their_own_and_one_too_many_hears_who_has_them_and_how_many_there_are() -> None:
    tenancy = Tenancy(2)
    numbers = [take(tenancy, "one", 10), take(tenancy, "two", 20)]
    assert sorted(numbers) == [0, 1]
    assert [tenancy.move_in(20), tenancy.move_in(10)] == numbers[::-1]
    assert sorted(tenancy.tenants) == ["one", "two"]
    with pytest.raises(WorkerInUse, match=r"in use by one, two; a worker serves 2 schedulers \(its --sessions\)"):
        tenancy.find_free()


def test_a_session_is_free_again_when_its_scheduler_has_gone_and_the_old_epoch_does_not_come_back() -> None:
    tenancy = Tenancy(2)
    for name, epoch in (("one", 10), ("two", 20)):
        take(tenancy, name, epoch)
        tenancy.move_in(epoch)
    tenancy.move_out(0)
    assert tenancy.tenants == ("two",)
    with pytest.raises(StaleRound, match="the epoch is not 10"):
        tenancy.move_in(10)
    assert take(tenancy, "three", 30) == 0
    assert tenancy.move_in(30) == 0


def test_handshakes_without_a_stream_block_nobody_and_the_oldest_gives_way() -> None:
    tenancy = Tenancy(2)
    for name, epoch in (("one", 10), ("two", 20), ("three", 30)):
        take(tenancy, name, epoch)
    with pytest.raises(StaleRound, match="the epoch is not 10: three, two has taken this worker"):
        tenancy.move_in(10)
    assert {tenancy.move_in(20), tenancy.move_in(30)} == {0, 1}


def test_with_one_session_a_later_handshake_has_the_worker() -> None:
    tenancy = Tenancy()
    take(tenancy, "one", 10)
    take(tenancy, "two", 20)
    with pytest.raises(StaleRound, match="two has taken this worker"):
        tenancy.move_in(10)
    tenancy.move_in(20)
    with pytest.raises(WorkerInUse, match="in use by two; a worker serves one scheduler at a time"):
        tenancy.move_in(10)


def test_nobody_moves_in_without_a_handshake() -> None:
    with pytest.raises(StaleRound, match="no scheduler has taken this worker"):
        Tenancy(2).move_in(1)
