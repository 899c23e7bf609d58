"""One running service: the launcher and its children as processes, what they say and what they hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from minedraft.errors import MineDraftError
from minedraft.local import LocalService, serve
from minedraft.types import Mode
from tests.stress.models import Pair
from tests.stress.presets import Preset

_READY_S = 120.0
_GONE_S = 30.0
_BAD_WORDS = ("refused", "lost", "Traceback", " WARNING ", " ERROR ", " CRITICAL ")


class Broken(Exception):
    """Something that must hold does not; the message says what."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the service holds while idle. Keys are process ids; memory is that of the scheduler, in MiB."""

    num_files: dict[int, int]
    scheduler_mb: float


class Log:
    """The last lines that the service wrote, and those that it should not have written."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=500)
        self._bad_lines: list[str] = []

    def take(self, line: str) -> None:
        self._lines.append(line)
        if any(word in line for word in _BAD_WORDS):
            self._bad_lines.append(line)

    def check(self) -> None:
        """Raises: Broken: it has a line it should not have."""
        if self._bad_lines:
            raise Broken("the log says: " + "\n".join(self._bad_lines[:5]))

    def last_words(self) -> str:
        return "\n".join(f"  {line}" for line in list(self._lines)[-12:])


class Service:
    """A service that accepts requests; see `serving`.

    Attributes:
        address: where clients connect.
    """

    def __init__(self, local: LocalService, log: Log) -> None:
        self.address = local.address
        self._local = local
        self._log = log
        self.children = psutil.Process(local.pid).children(recursive=True)

    def check(self) -> None:
        """Raises: Broken: a process has ended or was added, or the log has a line it should not have."""
        self._log.check()
        if self._local.exit_code is not None:
            raise Broken(f"the launcher ended with exit code {self._local.exit_code}")
        children = psutil.Process(self._local.pid).children(recursive=True)
        if {child.pid for child in children} != {child.pid for child in self.children}:
            raise Broken(f"the processes were {self.children} and are {children}")

    def held(self) -> Held:
        scheduler = next(child for child in self.children if "minedraft.server" in child.cmdline())
        return Held({child.pid: child.num_fds() for child in self.children}, scheduler.memory_info().rss / (1 << 20))


@asynccontextmanager
async def serving(preset: Preset, mode: Mode, pair: Pair, folder: Path) -> AsyncIterator[Service]:
    """Run the service, with its socket and all its files in `folder`, which is empty and private, until the
    block ends; then check that it has stopped as it should and left nothing.

    Raises:
        Broken: it does not become ready, or does not stop well, or what the block raises of it or of an
            error of ours; with the log.
    """
    # Drafts in every round: what `auto` would rather not draft would not be stressed.
    fixed = {"mode": mode.value, "dtype": "float32", "draft_len": 3, "keep_drafting": True}
    settings: dict[str, object] = fixed | dict(preset.flags)
    if mode.has_drafts and "draft_method" not in settings:
        settings["draft"] = pair.draft
    log = Log()
    local = serve(
        pair.target,
        on_line=log.take,
        environment={"XDG_RUNTIME_DIR": str(folder), "OMP_NUM_THREADS": "1"},
        listen=f"unix:{folder / 'm.sock'}",
        load_timeout_s=_READY_S,
        **settings,
    )
    try:
        async with local:
            service = Service(local, log)
            yield service
        await asyncio.to_thread(_check_end, local, service, folder)
        log.check()
    except (Broken, MineDraftError) as error:
        what = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        raise Broken(f"{what}\nlast lines of the log:\n{log.last_words()}") from error


def _check_end(local: LocalService, service: Service, folder: Path) -> None:
    _, alive = psutil.wait_procs(service.children, _GONE_S)
    left = [path.name for path in folder.iterdir()]
    if local.exit_code != 0 or alive or left:
        raise Broken(f"stopped with exit code {local.exit_code}; processes left: {alive}; files left: {left}")
