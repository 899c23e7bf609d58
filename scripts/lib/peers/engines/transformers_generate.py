"""transformers' `generate`: static batches, left-padded, in a child process of this project's environment.

It is a library and not a server: there is no client in between, and all prompts of a cell start and are padded
together.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedraft.errors import StartFailed
from minedraft.process.with_parent import child_command, child_environment
from scripts.lib.peers.arrivals import Stream
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.base import Engine, Setup
from scripts.lib.peers.engines.errors import PeerFailed

_LOADED = b"loaded\n"
_MAX_LINE_BYTES = 1 << 26


class TransformersGenerate:
    """A batch of `generate`."""

    name = "transformers"
    start_s = 8.0
    pace = 1.8

    def missing(self) -> str | None:
        return None

    def facts(self, setup: Setup) -> dict[str, Any]:
        settings = "generate, left-padded static batch, do_sample=False"
        return {name: importlib.metadata.version(name) for name in ("transformers", "torch")} | {"settings": settings}

    @asynccontextmanager
    async def serve(self, setup: Setup) -> AsyncIterator[Engine]:
        num_threads = str(len(setup.cores))
        argv = child_command(__name__, str(setup.model), setup.dtype, num_threads)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(OMP_NUM_THREADS=num_threads, **setup.variables),
            limit=_MAX_LINE_BYTES,
            process_group=0,
        )
        try:
            assert process.stdin is not None, "started with pipes"
            assert process.stdout is not None, "started with pipes"
            if await process.stdout.readline() != _LOADED:
                raise StartFailed(f"transformers did not start (exit code {await process.wait()})")
            yield _Child(process.pid, process.stdin, process.stdout)
        finally:
            if process.returncode is None:
                process.kill()  # it has nothing to save
            await process.wait()


@dataclass(slots=True)
class _Child:
    pid: int
    asks: asyncio.StreamWriter
    answers: asyncio.StreamReader

    async def answer(self, prompts: Sequence[Sequence[int]], cell: Cell) -> list[Stream]:
        sent_s = time.monotonic()
        task = {"prompts": prompts, "max_new_tokens": cell.max_new_tokens, "ignore_eos": cell.ignore_eos}
        self.asks.write(json.dumps(task).encode() + b"\n")
        line = await self.answers.readline()
        if not line:
            raise PeerFailed("transformers: the process ended")
        reply = json.loads(line)
        return to_streams(prompts, sent_s, reply["arrivals_s"], reply["rows"])


def to_streams(
    prompts: Sequence[Sequence[int]], sent_s: float, arrivals_s: Sequence[float], rows: Sequence[Sequence[int]]
) -> list[Stream]:
    """Return one answer per prompt.

    Args:
        arrivals_s: when each step's tokens came; all rows get one token in each step.
        rows: the tokens of each answer, without those after its end.
    """
    return [
        Stream(len(prompt), sent_s, tuple(arrivals_s[: len(row)]), (1,) * len(row), tuple(row))
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids and attention mask, both [prompts, longest prompt]."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask


def cut_at(row: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to and with the first that ends an answer."""
    end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return list(row[: end + 1])


def main(model_dir: str, dtype: str, num_threads: str) -> None:
    """Answer each line on standard input, one cell, with times and tokens."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation import BaseStreamer

    class Clock(BaseStreamer):  # type: ignore[misc]
        """Keeps when each step's tokens came; the first call brings the prompts."""

        def __init__(self) -> None:
            self.calls_s: list[float] = []

        def put(self, value: object) -> None:
            self.calls_s.append(time.monotonic())

        def end(self) -> None:
            pass

    torch.set_num_threads(int(num_threads))
    model = AutoModelForCausalLM.from_pretrained(Path(model_dir), dtype=getattr(torch, dtype), local_files_only=True)
    eos = model.generation_config.eos_token_id
    known = frozenset([eos] if isinstance(eos, int) else eos or ())
    print(_LOADED.decode(), end="", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        ids, mask = (torch.tensor(rows) for rows in left_pad(task["prompts"]))
        ends, limit, clock = frozenset() if task["ignore_eos"] else known, task["max_new_tokens"], Clock()
        # Not as an argument: None there means that the model's own is used.
        model.generation_config.eos_token_id = sorted(ends) or None
        with torch.inference_mode():
            full = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=limit,
                pad_token_id=0,
                streamer=clock,
            )
        rows = [cut_at(row, ends) for row in full[:, ids.shape[1] :].tolist()]
        print(json.dumps({"arrivals_s": clock.calls_s[1:], "rows": rows}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(*sys.argv[1:])
