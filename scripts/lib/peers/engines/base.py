"""What the benchmark asks of an engine, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from scripts.lib.peers.arrivals import Stream
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.instructions import Instructions, variables_for

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is started with.

    Attributes:
        dtype: number format of the weights, "bfloat16" or "float32".
        cores: all its processes run on these, ascending.
        max_in_flight: requests that it must be able to answer together.
        max_len: tokens of the longest prompt and its answer together.
        folder: an empty private folder, for sockets.
        instructions: the widest that it may use.
    """

    model: Path
    dtype: str
    cores: tuple[int, ...]
    max_in_flight: int
    max_len: int
    folder: Path
    instructions: Instructions = Instructions.NATIVE

    @property
    def variables(self) -> Mapping[str, str]:
        """Of the engine's environment, beside its own."""
        return variables_for(self.instructions)


class Engine(Protocol):
    """A running engine."""

    @property
    def pid(self) -> int:
        """The process that all its other processes descend from."""
        ...

    async def answer(self, prompts: Sequence[Sequence[int]], cell: Cell) -> list[Stream]:
        """Send all prompts at once, greedy, and return their answers in the same order.

        Raises:
            PeerFailed: the engine refused a prompt, or broke off.
        """
        ...


class Peer(Protocol):
    """An engine that can be compared.

    Attributes:
        name: its name on the command line and in the report.
        start_s: about how long it takes to start, in seconds.
        pace: about how long its answers take, as a multiple of `cells.expected_s`.
    """

    name: str
    start_s: float
    pace: float

    def missing(self) -> str | None:
        """Return why it cannot be run here, with the command that mends it; None if it can be run."""
        ...

    def facts(self, setup: Setup) -> dict[str, Any]:
        """Return versions and settings, for the report."""
        ...

    def serve(self, setup: Setup) -> AbstractAsyncContextManager[Engine]:
        """Run the engine until the block ends; the block begins when it accepts requests.

        Entering it raises:
            StartFailed: the engine ended before, or is not ready in time; the message has its last lines.
        """
        ...


class Installable(Peer, Protocol):
    """A peer that this command can install."""

    def install(self, say: Say) -> None:
        """Install it into an environment of its own; goes on where an earlier call was stopped.

        Args:
            say: takes lines of progress.

        Raises:
            PeerFailed: a command failed; the message names it and its log.
        """
        ...


class InFormat:
    """A peer with a number format of its own, where several formats are compared; named with it."""

    def __init__(self, peer: Peer, dtype: str) -> None:
        self.name = f"{peer.name} {dtype}"
        self.start_s = peer.start_s
        self.pace = peer.pace
        self._peer = peer
        self._dtype = dtype

    def missing(self) -> str | None:
        return self._peer.missing()

    def facts(self, setup: Setup) -> dict[str, Any]:
        return {"dtype": self._dtype, **self._peer.facts(replace(setup, dtype=self._dtype))}

    def serve(self, setup: Setup) -> AbstractAsyncContextManager[Engine]:
        return self._peer.serve(replace(setup, dtype=self._dtype))
