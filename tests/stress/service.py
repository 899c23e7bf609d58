"""One running service: `minedraft-launch` and its children as processes, what they say and what they hold."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from minedraft.errors import MineDraftError
from minedraft.types import Mode
from tests.stress.models import Pair
from tests.stress.presets import Preset

ROOT = Path(__file__).parents[2]
_READY_S = 120.0
_STOP_S = 60.0
_GONE_S = 5.0
_BAD_WORDS = ("refused", "lost", "Traceback", " WARNING ", " ERROR ", " CRITICAL ")


class Broken(Exception):
    """Something that must hold does not; the message says what."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the service holds while idle. Keys are process ids; memory is that of the scheduler, in MiB."""

    num_files: dict[int, int]
    scheduler_mb: float


class Service:
    """A launcher that has said that it is ready; see `serving`.

    Attributes:
        address: where clients connect. log: the last lines that launcher and children wrote.
    """

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.address = f"unix:{folder / 'm.sock'}"
        self.log: deque[str] = deque(maxlen=500)
        self._process = process
        self._folder = folder
        self._bad_lines: list[str] = []
        self._ready = asyncio.Event()
        self._children: list[psutil.Process] = []
        self._readers = [
            asyncio.create_task(self._read(stream)) for stream in (process.stdout, process.stderr) if stream is not None
        ]

    async def wait_ready(self) -> None:
        """Until it accepts requests.

        Raises:
            Broken: it ended, or took too long.
        """
        ready = asyncio.create_task(self._ready.wait())
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({ready, ended}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if not self._ready.is_set():
            with suppress(TimeoutError):  # the last words
                await asyncio.wait_for(asyncio.gather(*self._readers), 1 if self._process.returncode is not None else 0)
            raise Broken(f"it did not become ready (exit code {self._process.returncode})")
        self._children = psutil.Process(self._process.pid).children(recursive=True)

    def check(self) -> None:
        """Raises: Broken: a process has ended or was added, or the log has a line it should not have."""
        if self._bad_lines:
            raise Broken("the log says: " + "\n".join(self._bad_lines[:5]))
        if self._process.returncode is not None:
            raise Broken(f"the launcher ended with exit code {self._process.returncode}")
        children = psutil.Process(self._process.pid).children(recursive=True)
        if {child.pid for child in children} != {child.pid for child in self._children}:
            raise Broken(f"the processes were {self._children} and are {children}")

    def held(self) -> Held:
        scheduler = next(child for child in self._children if "minedraft.server" in child.cmdline())
        return Held({child.pid: child.num_fds() for child in self._children}, scheduler.memory_info().rss / (1 << 20))

    def last_words(self) -> str:
        return "\n".join(f"  {line}" for line in list(self.log)[-12:])

    async def stop(self) -> None:
        """End it as an operator does.

        Raises:
            Broken: not in time, not with exit code 0, or something is left.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            raise Broken(f"it does not stop within {_STOP_S:g} s of SIGTERM") from None
        _, alive = await asyncio.to_thread(psutil.wait_procs, self._children, _GONE_S)
        left = [path.name for path in self._folder.iterdir()]
        await asyncio.gather(*self._readers)
        if self._process.returncode != 0 or alive or left:
            code = self._process.returncode
            raise Broken(f"stopped with exit code {code}; processes left: {alive}; files left: {left}")
        if self._bad_lines:
            raise Broken("the log says: " + "\n".join(self._bad_lines[:5]))

    async def kill(self) -> None:
        """End it at once, if it has not ended; the children die with the launcher."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            self.log.append(text)
            if text.startswith("ready on"):
                self._ready.set()
            if any(word in text for word in _BAD_WORDS):
                self._bad_lines.append(text)


@asynccontextmanager
async def serving(preset: Preset, mode: Mode, pair: Pair, folder: Path) -> AsyncIterator[Service]:
    """Start the service with its socket and all its files in `folder`, which is empty and private; it is ended at
    the latest when the block ends.

    Raises:
        Broken: it does not become ready, or what the block raises of it or of an error of ours, with the log.
    """
    flags: dict[str, object] = {"target": pair.target, "mode": mode.value, "dtype": "float32", **preset.flags}
    if mode.has_drafts and "draft_method" not in flags:
        flags["draft"] = pair.draft
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minedraft.cli.launch", f"--listen=unix:{folder / 'm.sock'}", *argv,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        process_group=0,  # Ctrl-C is for us
    )  # fmt: skip
    service = Service(process, folder)
    try:
        await service.wait_ready()
        yield service
    except (Broken, MineDraftError) as error:
        what = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        raise Broken(f"{what}\nlast lines of the log:\n{service.last_words()}") from error
    finally:
        await service.kill()
