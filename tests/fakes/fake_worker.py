"""A worker process without a model, which starts in half a second: the product's runtime and gRPC edge, with fakes.

`python -m tests.fakes.fake_worker drafter|verifier` takes the flags of `minedraft-worker`. A file
`behaviour` in the model folder with "ROLE CODE" makes the worker of that role exit with CODE while it loads. A file
`poison` there with a token id kills every verifier that is to compute that token.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from minedraft.messages import DraftCommand, Proposal, Verdict, VerifyCommand
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import takes_parent
from minedraft.process.parent import exit_with_parent
from minedraft.settings.door import worker_tls
from minedraft.settings.flags import settings_flags
from minedraft.settings.loading import load_worker_settings
from minedraft.settings.worker import WorkerSettings
from minedraft.types import DraftMethod, Role
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import serve_worker
from minedraft_workers.servicer import drafter_handler, verifier_handler
from tests.fakes.workers import FakeDrafter, FakeVerifier

NUM_BLOCKS = 4096
MAX_MODEL_LEN = 4096
_VERIFY_S = 0.005  # the time of a forward


class FakeActor:
    """Plays both roles; executes on the device thread, as a real actor does."""

    def __init__(self, role: Role, model: Path) -> None:
        self._model = model
        self._fake = self._make(role)
        self.info = replace(
            self._fake.info,
            vocab_fingerprint=vocab_fingerprint(model),
            draft_method=DraftMethod.MODEL if role is Role.DRAFTER else None,
        )

    @property
    def num_free_blocks(self) -> int:
        return self._fake.kv.pool.num_free

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        assert isinstance(self._fake, FakeDrafter)
        return Work(self._fake.run(command).proposals)

    prefill = draft

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        assert isinstance(self._fake, FakeVerifier)
        time.sleep(_VERIFY_S)
        poison = self._model / "poison"
        if poison.exists() and int(poison.read_text()) in {token for span in command.spans for token in span.tokens}:
            os.kill(os.getpid(), signal.SIGKILL)
        return Work(self._fake.run(command).verdicts)

    def release(self, request_ids: Sequence[int]) -> None:
        self._fake.kv.release(request_ids)

    def reset(self, target_vocab_size: int) -> None:
        self._fake = self._make(Role.DRAFTER if isinstance(self._fake, FakeDrafter) else Role.VERIFIER)

    def _make(self, role: Role) -> FakeDrafter | FakeVerifier:
        kind = FakeDrafter if role is Role.DRAFTER else FakeVerifier
        return kind(NUM_BLOCKS, 16, MAX_MODEL_LEN)


async def _serve(settings: WorkerSettings) -> int:
    role = settings.role
    actor = FakeActor(role, settings.model)
    runtime = WorkerRuntime(actor)
    handler = drafter_handler(actor, runtime) if role is Role.DRAFTER else verifier_handler(actor, runtime)
    return await serve_worker(runtime, handler, settings.listen_address, tls=worker_tls(settings))


@click.command()
@settings_flags(WorkerSettings)
@takes_parent
def main(parent_pid: int | None, **flags: object) -> None:
    if parent_pid is not None:
        exit_with_parent(parent_pid)
    settings = load_worker_settings(flags)
    behaviour = settings.model / "behaviour"
    if behaviour.exists() and behaviour.read_text().startswith(settings.role.value):
        click.echo("the dog ate the weights", err=True)
        os._exit(int(behaviour.read_text().split()[1]))
    with ListenClaim(settings.listen_address):
        code = asyncio.run(_serve(settings))
    os._exit(code)


if __name__ == "__main__":
    main()
