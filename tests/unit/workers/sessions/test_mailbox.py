"""The mailbox of several sessions: whose command comes next."""

from __future__ import annotations

import threading

from minedraft_workers.rounds.mailbox import FairMailbox


def fill(*counts: int) -> FairMailbox[str]:
    """Return a mailbox with so many items in each queue, the first queue filled first."""
    mailbox: FairMailbox[str] = FairMailbox(len(counts))
    for number, count in enumerate(counts):
        for index in range(count):
            mailbox.put(number, f"{'abc'[number]}{index}")
    return mailbox


def drain(mailbox: FairMailbox[str]) -> list[str]:
    mailbox.close()
    found = []
    while (item := mailbox.get()) is not None:
        found.append(item)
    return found


def test_of_queues_with_items_each_gives_one_in_turn_and_keeps_its_order() -> None:
    assert drain(fill(4, 1, 2)) == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_who_comes_late_waits_for_one_item_of_another_session_at_most() -> None:
    mailbox = fill(5, 0)
    assert [mailbox.get(), mailbox.get()] == ["a0", "a1"]
    mailbox.put(1, "late")
    assert mailbox.get() == "late"
    assert mailbox.get() == "a2"


def test_what_is_taken_back_is_of_one_queue_and_does_not_come() -> None:
    mailbox = fill(3, 2)
    assert mailbox.take_back(0) == ["a0", "a1", "a2"]
    assert mailbox.take_back(0) == []
    assert drain(mailbox) == ["b0", "b1"]


def test_a_thread_that_waits_gets_what_comes_and_then_the_end() -> None:
    mailbox = fill(0, 0)
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.extend([mailbox.get(), mailbox.get()]))
    thread.start()
    mailbox.put(1, "b")
    mailbox.close()
    thread.join(10)
    assert found == ["b", None]
