"""A service of one's own, as long as a block lasts: for programs, notebooks and tests.

    from minedraft.local import serve

    with serve(target="models/big", draft="models/small", max_batch_size=4) as client:
        print(client.complete("Once upon a time").text)

    async with serve() as client:                        # the default pair, with an AsyncClient
        print((await client.complete("Hello")).text)

It is what `minedraft-launch` starts: scheduler, drafter and verifier as processes. They are gone when the
block has ended, however it ends, and they end with this process if it is killed; the folder of its socket,
which a killed process cannot remove, goes with the next start of a service.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType

from minedraft.client import AsyncClient, Client
from minedraft.config import Settings, load_settings
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, StartFailed
from minedraft.flags import to_flags
from minedraft.process.notify import READY_LINE
from minedraft.process.run_folder import RunFolder
from minedraft.process.watched import OnText, WatchedProcess
from minedraft.process.with_parent import child_command, child_environment

_STOP_SLACK_S = 30.0  # beyond drain_timeout_s; the launcher itself gives up earlier
_FORCED_STOP_S = 5.0  # the second signal ends everything within two seconds
_COMMAND = "minedraft-launch: "
_ONE_BLOCK = "a service is for one block"


def serve(
    target: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | None = None,
    *,
    on_line: OnText = lambda line: None,
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> LocalService:
    """A service that runs while a block does: `with` gives a connected `Client`, `async with` an `AsyncClient`.

    The block begins when requests are accepted. At its end the client is closed, and the service drains
    and stops; an interrupt (Ctrl-C, a cancelled task) meanwhile stops it at once, and is raised then.

    Args:
        target, draft: model folders; without a target the default pair, fetched where it is not there yet.
        on_line: takes each line that the service writes, progress and trouble, in a thread of its own.
        environment: variables of its processes besides this one's (CUDA_VISIBLE_DEVICES ...).
        settings: any of `minedraft.config.Settings` by name. It listens on a unix socket in a private
            folder unless `listen` says otherwise.

    Raises:
        ConfigErrors: at the call; what is wrong with the settings.
        StartFailed: entering the block; the last words of the service say why (no such folder, ...).
    """
    checked = load_settings({"target": target, "draft": draft, **settings})
    return LocalService(checked, on_line, environment or {}, is_private=settings.get("listen") is None)


class LocalService:
    """What `serve` returns; for one block.

    Args:
        is_private: listen in a private folder instead of where the settings say.

    Attributes:
        address: where it listens, from the start of the block on; others may connect there, too.
    """

    def __init__(
        self, settings: Settings, on_line: OnText, environment: Mapping[str, str], *, is_private: bool
    ) -> None:
        self.address = settings.listen
        self._settings = settings
        self._on_line = on_line
        self._environment = environment
        self._is_private = is_private
        self._folder: RunFolder | None = None
        self._process: WatchedProcess | None = None
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None
        self._ready: Future[None] = Future()
        self._ready.set_running_or_notify_cancel()  # so that nobody who waits can cancel it

    @property
    def pid(self) -> int:
        """The launcher's process id; the other processes are its children."""
        return self._started.pid

    @property
    def exit_code(self) -> int | None:
        """The launcher's; None while it runs."""
        return self._started.exit_code

    def __enter__(self) -> Client:
        assert self._process is None, _ONE_BLOCK
        try:
            self._start()
            self._ready.result()
            self._client = Client(self.address)
        except BaseException:
            self._stop()
            raise
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    async def __aenter__(self) -> AsyncClient:
        assert self._process is None, _ONE_BLOCK
        try:
            self._start()
            await asyncio.wrap_future(self._ready)
            self._async_client = AsyncClient(self.address)
        except BaseException:
            await self._stop_async()
            raise
        return self._async_client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_async()

    @property
    def _started(self) -> WatchedProcess:
        assert self._process is not None, "the block has not begun"
        return self._process

    def _start(self) -> None:
        settings = self._settings
        if self._is_private:
            self._folder = RunFolder()
            self.address = f"unix:{self._folder.path / 'minedraft.sock'}"
            settings = settings.model_copy(update={"listen": self.address})
        environment = child_environment(**self._environment)
        environment.pop("NOTIFY_SOCKET", None)  # that one is about this process, not about its service
        command = child_command("minedraft.cli.launch", *to_flags(settings))
        self._process = WatchedProcess(command, self._read, environment)
        self._process.ended.add_done_callback(self._on_end)
        self._process.start()

    def _stop(self) -> None:
        try:
            if self._client is not None:
                self._client.close()
        finally:
            try:
                if self._process is not None:
                    self._process.stop(*self._patience_s)
            finally:
                self._remove_folder()

    async def _stop_async(self) -> None:
        try:
            if self._async_client is not None:
                await self._async_client.close()
        finally:
            try:
                if self._process is not None:
                    await self._process.stop_async(*self._patience_s)
            finally:
                self._remove_folder()

    @property
    def _patience_s(self) -> tuple[float, float]:
        """Seconds that the first signal is given, which drains, and the second, which ends all at once."""
        return self._settings.drain_timeout_s + _STOP_SLACK_S, _FORCED_STOP_S

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _read(self, line: str) -> None:
        if line.startswith(READY_LINE) and not self._ready.done():
            self._ready.set_result(None)
        self._on_line(line)

    def _on_end(self, ended: Future[int]) -> None:
        if self._ready.done():
            return
        words = [line.removeprefix(_COMMAND) for line in self._started.tail] or ["it said nothing"]
        said = "\n  ".join(["", *words]) if len(words) > 1 else f" {words[0]}"
        exit_code = EXIT_CONFIG if ended.result() == EXIT_CONFIG else EXIT_INTERNAL
        message = f"the service did not start (exit code {ended.result()}):{said}"
        self._ready.set_exception(StartFailed(message, exit_code))
