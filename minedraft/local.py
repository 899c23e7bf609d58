"""Runs a private service while a block runs, for programs, notebooks and tests.

    from minedraft.local import serve

    with serve(target="models/big", draft="models/small", max_batch_size=4) as client:
        print(client.complete("Once upon a time").text)

    async with serve() as client:                        # the default pair, with an AsyncClient
        print((await client.complete("Hello")).text)

The service has the processes that `minedraft-launch` starts: scheduler, drafter and verifier. They end with
the block, however it ends, and with this process if it is killed. A killed process cannot remove the folder
of its socket; the next start of a service does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType

from minedraft.client import AsyncClient, Client
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, ConfigError, ConfigErrors, StartFailed
from minedraft.process.notify import READY_LINE
from minedraft.process.run_folder.folder import RunFolder
from minedraft.process.watched import OnText, WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from minedraft.settings.flags import to_flags
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings

_STOP_SLACK_S = 30.0  # beyond drain_timeout_s; the launcher itself gives up earlier
_FORCED_STOP_S = 5.0  # the second signal stops everything within two seconds
_COMMAND = "minedraft-launch: "
_ONE_BLOCK = "a LocalService can be entered once"


def serve(
    target: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | None = None,
    *,
    on_line: OnText = lambda line: None,
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> LocalService:
    """Return a service that runs while a block does: `with` gives a connected `Client`, `async with` an `AsyncClient`.

    The block begins when requests are accepted. When it ends, the client is closed, and the service drains
    and stops. An interrupt during that (Ctrl-C, a cancelled task) stops the service now and is then raised.

    Args:
        target, draft: model folders; without a target the default pair, which is fetched if it is missing.
        on_line: takes each line that the service writes, progress and errors; called in another thread.
        environment: variables of the service's processes besides this process's (CUDA_VISIBLE_DEVICES ...).
        settings: fields of `minedraft.settings.service.Settings` by name. Without `listen`, the service listens on a
            unix socket in a private folder.

    Raises:
        ConfigErrors: in this call, if settings are wrong.
        StartFailed: on entering the block; the message has the service's last lines (no such folder, ...).
    """
    checked = load_settings({"target": target, "draft": draft, **settings})
    if checked.tls_cert is not None:
        limit = "a service of one's own process has no TLS; minedraft-launch starts one for other hosts"
        raise ConfigErrors([ConfigError("tls_cert", str(checked.tls_cert), limit)])
    return LocalService(checked, on_line, environment or {}, is_private=settings.get("listen") is None)


class LocalService:
    """A service that runs while a block does; see `serve`. It can be entered once.

    Args:
        is_private: listen in a private folder instead of at the settings' address.

    Attributes:
        address: the service's address, from the start of the block on; other clients may connect to it too.
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
        self._ready.set_running_or_notify_cancel()  # so that a caller that waits cannot cancel it

    @property
    def pid(self) -> int:
        """The launcher's process id; the other processes are its children."""
        return self._started.pid

    @property
    def exit_code(self) -> int | None:
        """The launcher's exit code; None while it runs."""
        return self._started.exit_code

    def __enter__(self) -> Client:
        assert self._process is None, _ONE_BLOCK
        try:
            self._start()
            self._ready.result()
            self._client = Client(self.address, token_file=self._settings.token_file)
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
            self._async_client = AsyncClient(self.address, token_file=self._settings.token_file)
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
        environment.pop("NOTIFY_SOCKET", None)  # it is for this process, not for its service
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
        """Seconds to wait after the first signal, which drains, and after the second, which stops everything."""
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
        words = [line.removeprefix(_COMMAND) for line in self._started.tail] or ["no output"]
        said = "\n  ".join(["", *words]) if len(words) > 1 else f" {words[0]}"
        exit_code = EXIT_CONFIG if ended.result() == EXIT_CONFIG else EXIT_INTERNAL
        message = f"the service did not start (exit code {ended.result()}):{said}"
        self._ready.set_exception(StartFailed(message, exit_code))
