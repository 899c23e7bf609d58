"""Groups of requests that take turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minedraft.types import Batch
from minedraft.vllm.groups import Groups

A, B = Batch.A, Batch.B


def test_two_groups_take_turns_and_an_empty_one_is_left_out():
    groups = Groups()
    for name in "abc":
        groups.join(name, drafted_next=A)
    assert (groups.members(A), groups.members(B)) == (("a", "c"), ("b",))
    assert [groups.next_turn() for _ in range(4)] == [A, B, A, B]
    groups.leave("b")
    assert [groups.next_turn() for _ in range(3)] == [A, A, A]


def test_a_newcomer_joins_the_group_that_is_drafted_next_unless_the_other_is_smaller():
    groups = Groups()
    assert groups.join("a", drafted_next=B) is B
    assert groups.join("b", drafted_next=B) is A
    assert groups.join("c", drafted_next=B) is B
    assert groups.join("d", drafted_next=B) is A


def test_a_group_that_is_larger_by_more_than_one_gives_its_newest_when_it_was_verified():
    groups = Groups()
    for name in "abcdef":
        groups.join(name, drafted_next=A)
    for name in "bd":
        groups.leave(name)
    assert groups.rebalance(B) == ()  # group A has drafts on their way
    assert groups.rebalance(A) == ("e",)
    assert (groups.members(A), groups.members(B)) == (("a", "c"), ("e", "f"))


def test_a_single_group_is_never_split():
    groups = Groups(num_groups=1)
    for name in "abcd":
        groups.join(name, drafted_next=A)
    assert groups.rebalance(A) == ()
    assert [groups.next_turn() for _ in range(3)] == [A, A, A]


@given(st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 9)), max_size=60))
def test_after_a_turn_of_each_group_they_differ_by_one_at_most_and_nobody_is_lost(steps: list[tuple[str, int]]):
    groups, alive = Groups(), set()
    for kind, number in steps:
        turn = groups.next_turn()
        if kind == "join" and str(number) not in alive:
            groups.join(str(number), drafted_next=turn)
            alive.add(str(number))
        elif kind == "leave":
            groups.leave(str(number))
            alive.discard(str(number))
        groups.rebalance(turn)
    for _ in range(2):
        groups.rebalance(groups.next_turn())
    assert {*groups} == alive
    assert abs(len(groups.members(A)) - len(groups.members(B))) <= 1
