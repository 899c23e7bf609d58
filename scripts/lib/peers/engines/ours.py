"""This project's service, in one of its modes: scheduler and workers as `minedraft-launch` starts them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedraft.client import AsyncClient
from minedraft.device import Device
from minedraft.errors import MineDraftError
from minedraft.local import serve
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from scripts.lib.peers.arrivals import Stream
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.base import Engine, Setup
from scripts.lib.peers.engines.errors import PeerFailed

_PACKAGES = ("minedraft", "torch", "transformers", "grpcio")


class Ours:
    """The whole stack, asked through gRPC.

    Args:
        draft: folder of the draft model, for modes with drafts.
    """

    start_s = 6.0
    pace = 0.7

    def __init__(self, mode: Mode, draft: Path | None) -> None:
        self.name = f"minedraft {mode.value}" if mode is not Mode.MINEDRAFT else "minedraft"
        self._mode = mode
        self._draft = draft

    def missing(self) -> str | None:
        if self._mode.has_drafts and self._draft is None:
            return f"mode {self._mode.value} needs a draft model: --draft DIR"
        return None

    def facts(self, setup: Setup) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        settings = {name: value for name, value in self._settings(setup).items() if value is not None}
        return {"version": versions.pop("minedraft"), "packages": versions, "settings": settings}

    @asynccontextmanager
    async def serve(self, setup: Setup) -> AsyncIterator[Engine]:
        draft = self._draft if self._mode.has_drafts else None
        service = serve(setup.model, draft, environment=setup.variables, **self._settings(setup))
        async with service as client:
            yield _Service(service.pid, client)

    def _settings(self, setup: Setup) -> dict[str, Any]:
        first, *others = setup.cores
        target = Device("cpu", tuple(others) if others and self._mode.has_drafts else setup.cores)
        return {
            "mode": self._mode.value,
            "dtype": setup.dtype,
            "target_device": str(target),
            "draft_device": str(Device("cpu", (first,))) if self._mode.has_drafts else None,
            "keep_cores": True,  # else a verifier on another core than the first takes that one, too
            "max_batch_size": -(-setup.max_in_flight // self._mode.num_batches),
            "num_blocks": setup.max_in_flight * -(-setup.max_len // 16),
            "drain_timeout_s": 1.0,
        }


@dataclass(slots=True)
class _Service:
    pid: int
    client: AsyncClient

    async def answer(self, prompts: Sequence[Sequence[int]], cell: Cell) -> list[Stream]:
        params = SamplingParams(max_new_tokens=cell.max_new_tokens, ignore_eos=cell.ignore_eos)
        try:
            return list(await asyncio.gather(*(self._listen(prompt, params) for prompt in prompts)))
        except MineDraftError as error:
            raise PeerFailed(f"minedraft: {error}") from None

    async def _listen(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        pieces: list[tuple[float, tuple[int, ...]]] = []
        sent_s = time.monotonic()
        async for piece in self.client.generate(prompt, params):
            if piece.token_ids:
                pieces.append((time.monotonic(), piece.token_ids))
        return Stream(
            num_prompt_tokens=len(prompt),
            sent_s=sent_s,
            arrivals_s=tuple(at_s for at_s, _ in pieces),
            piece_lens=tuple(len(tokens) for _, tokens in pieces),
            token_ids=tuple(token for _, tokens in pieces for token in tokens),
        )
