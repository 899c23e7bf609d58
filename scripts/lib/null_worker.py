"""A worker whose forward takes no time, on the product's own runtime, to measure the cost of control.

`python -m scripts.lib.null_worker drafter|verifier --listen ADDR`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from minedraft.address import Address
from minedraft.messages import DraftCommand, Proposal, Verdict, VerifyCommand, WorkerInfo
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.process.claim import ListenClaim
from minedraft.process.serving import run_serving
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import serve_worker
from minedraft_workers.servicer import drafter_handler, verifier_handler


def null_info(role: Role) -> WorkerInfo:
    return WorkerInfo(
        role=role,
        epoch=0,
        protocol_version=PROTOCOL_VERSION,
        vocab_size=50_000,
        vocab_fingerprint="null",
        num_blocks=1 << 20,
        block_size=16,
        max_model_len=1 << 20,
        model_name="null",
        device="none",
        dtype="none",
        draft_method=DraftMethod.MODEL if role is Role.DRAFTER else None,
    )


class NullActor:
    """Proposes the tokens 1, 2, 3 ... and accepts every other draft.

    Args:
        tokenizer: folder of the tokenizer that it reports as its own.
    """

    def __init__(self, role: Role, tokenizer: Path | None = None) -> None:
        self.info = null_info(role)
        if tokenizer is not None:
            self.info = replace(self.info, vocab_fingerprint=vocab_fingerprint(tokenizer))
        self.num_free_blocks = self.info.num_blocks

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        spans = [span for span in command.spans if span.draft_len]
        return Work(
            tuple(
                Proposal(span.request_id, span.prefix_len + len(span.tokens), tuple(range(1, span.draft_len + 1)))
                for span in spans
            )
        )

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        return self.draft(command)

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        return Work(
            tuple(
                Verdict(
                    span.request_id,
                    span.prefix_len + len(span.tokens),
                    accepted_len := (len(span.drafts) + 1) // 2 if span.sample else 0,
                    (*span.drafts[:accepted_len], 7) if span.sample else (),
                )
                for span in command.spans
            )
        )

    def release(self, request_ids: Sequence[int]) -> None:
        pass

    def reset(self, target_vocab_size: int) -> None:
        pass


async def _serve(role: Role, address: Address, tokenizer: Path | None) -> int:
    actor = NullActor(role, tokenizer)
    runtime = WorkerRuntime(actor)
    handler = drafter_handler(actor, runtime) if role is Role.DRAFTER else verifier_handler(actor, runtime)
    return await serve_worker(runtime, handler, address)


@click.command()
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--listen", required=True, metavar="ADDR", help="Address to serve the scheduler on.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer to report as its own.")
def main(role: str, listen: str, tokenizer: Path | None) -> None:
    """Run a worker whose forward takes no time."""
    address = Address.parse(listen, "listen")
    with ListenClaim(address):
        code = run_serving(_serve(Role(role), address, tokenizer))
    os._exit(code)


if __name__ == "__main__":
    main()
