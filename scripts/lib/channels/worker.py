"""A worker that computes nothing and sends tensors, on the product's own runtime and channel, to measure carriers.

`python -m scripts.lib.channels.worker drafter|verifier --listen ADDR`
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import cache

import click
import torch

from minedraft.address import Address
from minedraft.device import Device
from minedraft.messages import DraftCommand, Features, Proposal, TruncatedQ, Verdict, VerifyCommand
from minedraft.process.claim import ListenClaim
from minedraft.types import Acceptance, Role, SequenceSpec
from minedraft_workers.channels.base import TensorSpec
from minedraft_workers.channels.joined import JoinedChannel
from minedraft_workers.channels.opening import Opener
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import serve_worker
from minedraft_workers.servicer import drafter_handler, verifier_handler
from scripts.lib.null_worker import NullActor

_HOST = torch.device("cpu")
_ANY = 1 << 20  # rows or columns that a receiver takes


class ChannelActor(NullActor):
    """Accepts every draft. A request's `top_k` says how wide its q is (0: none), and its seed how many numbers the
    features of a token have (0: none are wanted)."""

    def __init__(self, role: Role, channel: JoinedChannel) -> None:
        super().__init__(role)
        self.info = replace(self.info, feature_layers=(0,), feature_size=1)
        self._channel = channel
        self._specs: dict[int, SequenceSpec] = {}

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        rows = []
        for span in command.spans:
            spec = self._specs.setdefault(span.request_id, span.spec) if span.spec else self._specs[span.request_id]
            for piece in span.features:
                self._unpack(piece.states.dtype, piece.states)
            tokens = tuple(range(1, span.draft_len + 1))
            rows.append(Proposal(span.request_id, span.committed_len, tokens, self._make_q(spec, span.draft_len)))
        return Work(tuple(rows))

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        rows = []
        for span in command.spans:
            spec = self._specs.setdefault(span.request_id, span.spec) if span.spec else self._specs[span.request_id]
            if span.q is not None:
                self._unpack("int32", span.q.ids)
                self._unpack("float32", span.q.probs)
            features = None
            if span.wants_features:
                num_rows = len(span.tokens) + len(span.drafts)
                features = Features(span.prefix_len, self._channel.pack(_zeros(num_rows, spec.seed, torch.bfloat16)))
            tokens = (*span.drafts, 7)
            rows.append(Verdict(span.request_id, span.committed_len, len(span.drafts), tokens, features=features))
        return Work(tuple(rows))

    def reset(self, target_vocab_size: int) -> None:
        self._specs.clear()

    def _make_q(self, spec: SequenceSpec, draft_len: int) -> TruncatedQ | None:
        if spec.acceptance is not Acceptance.REJECTION:
            return None
        pack, width = self._channel.pack, spec.sampling.top_k
        return TruncatedQ(pack(_zeros(draft_len, width, torch.int32)), pack(_zeros(draft_len, width, torch.float32)))

    def _unpack(self, dtype: str, tensor: object) -> None:
        self._channel.unpack(tensor, TensorSpec(dtype, (_ANY, _ANY)), _HOST)  # type: ignore[arg-type]


@cache
def _zeros(num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(num_rows, num_columns, dtype=dtype)


async def _serve(role: Role, address: Address) -> int:
    opener = Opener(Device.parse("cpu"))
    channel = JoinedChannel(opener.open)
    actor = ChannelActor(role, channel)
    actor.info = replace(actor.info, channels=opener.offers())
    runtime = WorkerRuntime(actor)
    make_handler = drafter_handler if role is Role.DRAFTER else verifier_handler
    return await serve_worker(runtime, make_handler(actor, runtime, channel), address)


@click.command()
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--listen", required=True, metavar="ADDR", help="Address to serve the scheduler on.")
def main(role: str, listen: str) -> None:
    """Run a worker that sends tensors and computes nothing."""
    torch.set_num_threads(1)
    address = Address.parse(listen, "listen")
    with ListenClaim(address):
        code = asyncio.run(_serve(Role(role), address))
    os._exit(code)


if __name__ == "__main__":
    main()
