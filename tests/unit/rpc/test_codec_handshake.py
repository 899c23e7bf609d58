"""What a worker says of itself survives the wire, and nonsense is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minedraft.errors import InvalidRequest
from minedraft.messages import Timing
from minedraft.rpc.codec import common
from minedraft.types import DraftMethod, Role
from minedraft.v1 import worker_pb2
from scripts.lib.null_worker import null_info

INFO = null_info(Role.VERIFIER)


def test_worker_info_survives_the_wire() -> None:
    model = replace(INFO, role=Role.DRAFTER, draft_method=DraftMethod.MODEL, weights_bytes=1 << 40)
    ngram = replace(INFO, role=Role.DRAFTER, draft_method=DraftMethod.NGRAM, num_blocks=0, epoch=(1 << 64) - 1)
    for info in (INFO, model, ngram):
        wire = common.info_to_pb(info, 5).SerializeToString()
        assert common.info_from_pb(worker_pb2.HandshakeReply.FromString(wire), 4, 6) == info


@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 0}, {"num_blocks": 0}, {"block_size": 0}, {"max_model_len": 0}, {"model_name": "x" * 2000}],
)
def test_a_handshake_with_nonsense_in_it_is_refused(changes: dict[str, object]) -> None:
    message = common.info_to_pb(replace(INFO, **changes), 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        common.info_from_pb(message, 4, 6)


@pytest.mark.parametrize("field", ["role", "draft_method"])
def test_a_worker_of_an_unknown_kind_is_refused(field: str) -> None:
    message = common.info_to_pb(INFO, 5)
    setattr(message, field, "oracle")
    with pytest.raises(InvalidRequest, match=f"{field} is 'oracle': must be one of"):
        common.info_from_pb(message, 4, 6)


def test_moments_of_a_worker_are_on_the_schedulers_clock() -> None:
    """Its clock is 1,000 s ahead; the answer was made somewhere between the question and its arrival."""
    ahead_ns = 10**12
    message = common.info_to_pb(INFO, clock_ns=ahead_ns + 50_000)
    info = common.info_from_pb(message, sent_ns=0, received_ns=90_000)
    assert info.clock_offset_ns == -ahead_ns - 5_000, "within half the round trip"
    sent = common.timing_to_pb(Timing(1, 2, 3, 4, start_ns=ahead_ns + 7_000_000))
    assert common.timing_from_pb(sent, info) == Timing(1, 2, 3, 4, start_ns=7_000_000 - 5_000)


def test_workers_of_one_host_have_one_clock() -> None:
    assert common.clock_offset_ns(worker_ns=60, sent_ns=50, received_ns=90) == 0
