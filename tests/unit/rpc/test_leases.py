"""A lease is free as soon as no value refers to it, and not before."""

from __future__ import annotations

from dataclasses import replace

from minedraft.carriers import Carrier
from minedraft.core.rounds import shorten
from minedraft.messages import Proposal, Tensor, TensorRef, TruncatedQ
from minedraft.rpc.leases import LeaseBook


def make_proposal(generation: int) -> Proposal:
    ids, probs = (
        Tensor(dtype, (3, 2), reference=TensorRef(Carrier.SHM, 1, 0, generation + index, 24))
        for index, dtype in enumerate(("int32", "float32"))
    )
    return Proposal(1, 9, (5, 6, 7), TruncatedQ(ids, probs))


def watch(book: LeaseBook, proposal: Proposal) -> None:
    assert proposal.q is not None
    for side in (proposal.q.ids, proposal.q.probs):
        assert side.reference is not None
        book.watch(side.reference)


def test_a_lease_is_free_when_the_last_value_with_it_is_gone() -> None:
    book, proposal = LeaseBook(), make_proposal(7)
    watch(book, proposal)
    short, other = shorten(proposal, 2), replace(proposal, committed_len=10)
    del proposal
    assert book.take(9) == []
    del other
    assert book.take(9) == []
    del short
    assert sorted(book.take(9)) == [7, 8]
    assert book.take(9) == []


def test_one_of_two_equal_references_frees_its_own_lease_only() -> None:
    book = LeaseBook()
    first, second = make_proposal(1), make_proposal(3)
    watch(book, first)
    watch(book, second)
    del first
    assert sorted(book.take(9)) == [1, 2]


def test_no_more_are_taken_than_a_command_carries() -> None:
    book = LeaseBook()
    book.free(range(5))
    assert [book.take(2), book.take(2), book.take(2)] == [[0, 1], [2, 3], [4]]
