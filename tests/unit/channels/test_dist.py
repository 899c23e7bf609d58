"""Two ends of torch.distributed, over gloo in one process: bytes arrive, nothing waits for ever, no port is public."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft_workers.channels import dist
from minedraft_workers.channels.dist import WINDOW_BYTES, DistEnd

CPU = torch.device("cpu")
DATA = torch.arange(200, dtype=torch.uint8)


def open_end() -> DistEnd:
    return DistEnd(itertools.count(1), CPU, "127.0.0.1")


def join(*ends: DistEnd) -> None:
    other = threading.Thread(target=ends[1].join, args=(ends[0].end,))
    other.start()
    ends[0].join(ends[1].end)
    other.join()


@pytest.fixture
def ends() -> Iterator[tuple[DistEnd, DistEnd]]:
    pair = open_end(), open_end()
    join(*pair)
    yield pair
    for end in pair:
        end.close()


def send(end: DistEnd, data: torch.Tensor) -> TensorRef:
    reference = end.send(data)
    assert reference is not None
    return reference


def test_bytes_arrive_both_ways_in_any_order(ends: tuple[DistEnd, DistEnd]) -> None:
    for ours, theirs in (ends, reversed(ends)):
        sizes = (200, 1, 64, 150_000)
        references = [send(ours, DATA.repeat(1000)[:n]) for n in sizes]
        for n, reference in reversed(list(zip(sizes, references, strict=True))):
            assert torch.equal(theirs.receive(reference, n), DATA.repeat(1000)[:n])
        assert torch.equal(theirs.receive(references[0], 10), DATA[:10]), "the first rows, and once more"


def test_what_is_sent_later_does_not_change_what_was_sent(ends: tuple[DistEnd, DistEnd]) -> None:
    data = DATA.clone()
    reference = send(ends[0], data)
    data.zero_()
    assert torch.equal(ends[1].receive(reference, 200), DATA)


def test_what_is_free_is_forgotten_and_its_room_used_again(ends: tuple[DistEnd, DistEnd]) -> None:
    ours, theirs = ends
    big = torch.zeros(WINDOW_BYTES // 3, dtype=torch.uint8)
    first, second = send(ours, big), send(ours, big)
    assert ours.send(big) is None
    ours.free([first.generation])
    third = send(ours, big + 3)
    assert torch.equal(theirs.receive(third, len(big)), big + 3)
    assert torch.equal(theirs.receive(second, 5), big[:5])
    assert set(theirs._inbox._held) == {second.generation, third.generation}


@pytest.mark.parametrize(
    ("changes", "num_bytes", "names"),
    [
        ({}, 201, "num_bytes is 200: 200 have come, the tensor has 201"),
        ({"num_bytes": 300}, 250, "num_bytes is 300: 200 have come"),
        ({"segment": 1}, 200, "segment is 1: that worker has not joined"),
        ({"generation": 99}, 200, "generation is 99: it has not come within 0.01 s"),
    ],
)
def test_a_bad_reference_is_refused_by_name(
    ends: tuple[DistEnd, DistEnd],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    num_bytes: int,
    names: str,
) -> None:
    reference = send(ends[0], DATA)
    ends[1].receive(reference, 200)
    monkeypatch.setattr(dist, "RECEIVE_TIMEOUT_S", 0.01)
    with pytest.raises(ChannelFailed, match=rf"tensor\.reference\.{names}"):
        ends[1].receive(replace(reference, **changes), num_bytes)  # type: ignore[arg-type]


def test_after_a_goodbye_a_receiver_waits_no_longer_and_a_sender_is_told(ends: tuple[DistEnd, DistEnd]) -> None:
    ours, theirs = ends
    reference = send(ours, DATA)
    ours.close()
    assert torch.equal(theirs.receive(reference, 200), DATA), "what was sent before arrives"
    with pytest.raises(ChannelFailed, match="generation is 9: the other worker has left"):
        theirs.receive(replace(reference, generation=9), 200)
    with pytest.raises(ChannelFailed, match="the other worker has left"):
        theirs.send(DATA)


def test_more_than_the_window_is_refused(ends: tuple[DistEnd, DistEnd]) -> None:
    theirs = ends[1]
    with pytest.raises(ChannelFailed, match=rf"\[1, {WINDOW_BYTES}\] bytes come beside 0, the window has"):
        theirs._inbox.make_room([1, WINDOW_BYTES], 1)
    with pytest.raises(ChannelFailed, match=r"\[9, -1\] bytes come"):
        theirs._inbox.make_room([9, -1], 1)


def test_many_tensors_share_headers_and_arrive_one_by_one(ends: tuple[DistEnd, DistEnd]) -> None:
    ours, theirs = ends
    sizes = [1 + 7 * n for n in range(100)] + [3 << 20, 1]
    references = [send(ours, torch.full((n,), n % 251, dtype=torch.uint8)) for n in sizes]
    for n, reference in zip(sizes, references, strict=True):
        assert torch.equal(theirs.receive(reference, n), torch.full((n,), n % 251, dtype=torch.uint8))


def test_a_peer_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "JOIN_TIMEOUT_S", 0.2)
    for segment in (0, (1 << 64) - 1):  # whichever of the two has the rendezvous
        ours, other = open_end(), open_end()
        other.close()
        with pytest.raises(ChannelFailed, match=f"no connection to {other.end.address}"):
            ours.join(replace(other.end, segment=segment))


def test_an_end_is_joined_once(ends: tuple[DistEnd, DistEnd]) -> None:
    with pytest.raises(ChannelFailed, match="it was joined or closed before"):
        ends[0].join(ends[1].end)


def test_an_address_that_cannot_be_listened_on_is_an_error() -> None:
    with pytest.raises(ChannelFailed, match=r"cannot listen on 192\.0\.2\.1"):
        DistEnd(itertools.count(1), CPU, "192.0.2.1")


def test_no_port_is_open_to_other_hosts() -> None:
    """torch's own rendezvous listens on every network."""
    before = _listening()
    pair = open_end(), open_end()
    join(*pair)
    opened = _listening() - before
    assert opened
    assert {address.partition(":")[0] for address in opened} == {"0100007F"}, "127.0.0.1"
    for end in pair:
        end.close()


def _listening() -> set[str]:
    """Return the addresses of this process's listening sockets, in hexadecimal digits."""
    own = set()
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{fd}"):
            own.add(os.readlink(f"/proc/self/fd/{fd}"))
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/self/net/{table}") as lines:
            rows = [line.split() for line in lines][1:]
        found |= {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
    return found
