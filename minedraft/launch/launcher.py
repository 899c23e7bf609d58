"""The supervisor: starts drafter, verifier and scheduler, reports when they are ready, keeps them running, stops them
in order.

A process that dies or hangs is started again (`restart.py`), the scheduler too: the workers stay loaded, and the new
one takes its predecessor's address. Calls that were open then fail, and can be sent again.

However the launcher ends, it leaves nothing behind: the kernel ends the children with it, and the sockets are in a
private folder that it removes or, if it is killed, the scheduler.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from minedraft.address import Address
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, EXIT_OK, ConfigError
from minedraft.launch.placement import cores_beside, divide_memory, find_hang_timeout_s
from minedraft.launch.restart import ESSENTIAL, OPTIONAL, GiveUp
from minedraft.launch.supervised import Report, Supervised
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import EXIT_OF_SIGNAL
from minedraft.process.heartbeat import Unburdened, feed_watchdog
from minedraft.process.notify import Notifier
from minedraft.process.run_folder.absent_doors import tell_absent
from minedraft.process.run_folder.folder import OWN_DOOR, RunFolder
from minedraft.process.with_parent import bind_to_parent
from minedraft.rpc.health import INFERENCE_SERVICE, LIVE, wait_serving
from minedraft.security.tls import Access, worker_client_tls
from minedraft.security.tokens import read_tokens
from minedraft.settings.flags import to_flags
from minedraft.settings.service import Settings
from minedraft.types import Role

_PROGRESS_S = 2.0
_FORCED_STOP_S = 1.5  # a second signal ends everything within two seconds
_WORKER_STOP_S = 5.0
_HTTP_LOOK_S = 0.05
_STOP_SLACK_S = 15.0  # beyond drain_timeout_s
_INFO_LINE = " INFO minedraft."

# The drafter is an accelerator, and who asks over gRPC needs no HTTP door.
_WITHOUT_IT = {"drafter": "continuing without drafts", "http": "the service goes on by gRPC alone"}
_DOORS = ("http",)

# -P: a file of the current folder must not be imported as a module.
PYTHON = (sys.executable, "-P", "-m")
WORKER_COMMAND = (*PYTHON, "minedraft_workers.main")


class _GivenUp(Exception):
    """A process that the service needs has ended and is not started again."""

    def __init__(self, process: Supervised) -> None:
        self.exit_code = EXIT_CONFIG if process.exit_code == EXIT_CONFIG else EXIT_INTERNAL


class _Peer(NamedTuple):
    """Where a process is asked whether it is ready: the address, the name of its health service, what to show there."""

    address: Address
    service: str
    access: Access


class Launcher:
    """Runs one service.

    Args:
        settings: checked, with target and draft filled in.
        report: takes one line of progress or an error for the operator; must not raise.
        announce: called once, when requests are accepted, with the seconds since the start; must not raise.
        worker_command: the command line of a worker, without role and flags.
        is_verbose: also report the children's log lines of level INFO.
        pass_on: takes a child's name and a line of its log; must not raise. Default: reports both.
        notifier: tells systemd.
    """

    def __init__(
        self,
        settings: Settings,
        report: Report,
        announce: Callable[[float], None],
        *,
        worker_command: Sequence[str] = WORKER_COMMAND,
        is_verbose: bool = False,
        pass_on: Callable[[str, str], None] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._tell_line = pass_on or (lambda name, line: report(f"{name} | {line}"))
        self._settings = settings
        self._report = report
        self._announce = announce
        self._worker_command = tuple(worker_command)
        self._is_verbose = is_verbose
        self._notifier = notifier or Notifier()
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._processes: dict[str, Supervised] = {}
        self._ends: dict[str, asyncio.Task[GiveUp | None]] = {}
        self._peers: dict[str, _Peer] = {}  # of the processes that answers need
        self._reported: set[str] = set()
        self._is_serving = False
        self._folder = Path()  # the run folder, from the start on
        self._started_s = time.monotonic()
        self._next_progress_s = _PROGRESS_S

    async def run(self) -> int:
        """Start, serve until a signal or a failure, stop. Return the exit code."""
        loop = asyncio.get_running_loop()
        for signum in _stop_signals():
            loop.add_signal_handler(signum, self._signals.put_nowait, signum)
        folder = RunFolder()
        try:
            return await self._run(folder)
        finally:
            await self._end_all()
            folder.remove()
            with suppress(ConfigError):  # a killed scheduler leaves its socket; another service's socket stays
                ListenClaim(self._settings.listen_address).release()

    async def _run(self, folder: RunFolder) -> int:
        signum = asyncio.create_task(self._signals.get())
        try:
            self._start(folder)
            await self._wait_ready(signum)
            if signum.done():
                self._report("stopped while loading")
                return EXIT_OF_SIGNAL + signum.result()
            self._announce(self._elapsed_s)
            self._is_serving = True
            self._notifier.ready()
            self._tell_status()
            feeding = asyncio.create_task(feed_watchdog(self._notifier, Unburdened))
            try:
                await self._keep_serving(signum)
            finally:
                feeding.cancel()
            return await self._stop()
        except _GivenUp as failed:
            return failed.exit_code
        except TimeoutError as error:
            self._report(f"not ready within load_timeout_s {self._settings.load_timeout_s:g}: {error}")
            return EXIT_INTERNAL
        finally:
            signum.cancel()

    async def _keep_serving(self, signum: asyncio.Task[int]) -> None:
        """Return at a signal. Raise _GivenUp when a process that the service needs is not started again."""
        while not signum.done():
            await asyncio.wait({signum, *self._ends.values()}, return_when=asyncio.FIRST_COMPLETED)
            self._drop_optional()
            self._check_processes()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _check_processes(self) -> None:
        for name, end in self._ends.items():
            if end.done():
                end.result()
                raise _GivenUp(self._processes[name])

    def _drop_optional(self) -> None:
        """Go on without a process that cannot be started again, if answers do not need it."""
        for name in _WITHOUT_IT:
            if (end := self._ends.get(name)) is not None and end.done():
                end.result()
                del self._ends[name]

    def _tell_status(self) -> None:
        """Tell systemd what the state of the processes means for the service."""
        if not self._is_serving:
            return
        missing = [name for name, process in self._processes.items() if not process.is_ready]
        tell_absent(self._folder, [name for name in missing if name in _DOORS])
        num_restarts = sum(process.num_restarts for process in self._processes.values())
        state = f"degraded: no {' and no '.join(missing)}" if missing else "serving"
        self._notifier.status(state + (f"; restarts: {num_restarts}" if num_restarts else ""))

    # Start

    def _start(self, folder: RunFolder) -> None:
        self._folder = folder.path
        settings = divide_memory(self._settings)
        verifier = settings.target_address or f"unix:{folder.path / 'verifier.sock'}"
        drafter = settings.draft_address or f"unix:{folder.path / 'drafter.sock'}"
        self._peers = {
            "verifier": self._worker(Address.parse(verifier, "target_address")),
            "scheduler": _Peer(Address(folder.path / OWN_DOOR), INFERENCE_SERVICE, self._own_access()),
        }
        if settings.needs_drafter:
            self._peers["drafter"] = self._worker(Address.parse(drafter, "draft_address"))
        addresses: dict[str, Any] = {"target_address": verifier}
        if settings.needs_drafter:
            addresses |= {"draft_address": drafter, "draft": None}
        argv = [*PYTHON, "minedraft.server", *to_flags(settings.model_copy(update=addresses))]
        # The scheduler is the first: if the launcher is killed, it removes the folder.
        self._supervise("scheduler", [*argv, "--run-folder", str(folder.path), *_parent_flag()], folder)
        for role in settings.own_workers:
            address = verifier if role is Role.VERIFIER else drafter
            argv = [*self._worker_command, *worker_flags(settings, role, address)]
            self._supervise(role.value, argv, folder, cores_beside(settings, role))
        if settings.http is not None:
            self._start_http(folder, settings)

    def _start_http(self, folder: RunFolder, settings: Settings) -> None:
        given = {
            "target": settings.target,
            "server": f"unix:{folder.path / OWN_DOOR}",
            "listen": settings.http,
            "model-name": settings.model_name,
            "origins": settings.http_origins,
            "hosts": settings.http_hosts,
            "metrics": settings.metrics,
            "token-file": settings.token_file,
            "tls-cert": settings.tls_cert,
            "tls-key": settings.tls_key,
            "log-format": settings.log_format,
            "log-level": settings.log_level,
        }
        flags = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
        self._supervise("http", [*PYTHON, "minedraft.http.main", *flags, *_parent_flag()], folder)

    def _worker(self, address: Address) -> _Peer:
        return _Peer(address, LIVE, Access(worker_client_tls(self._settings.worker_tls, address)))

    def _own_access(self) -> Access:
        token_file = self._settings.token_file
        return Access() if token_file is None else Access(token=read_tokens(token_file)[0])

    def _supervise(self, name: str, argv: list[str], folder: RunFolder, cores: Collection[int] = ()) -> None:
        process = Supervised(
            name,
            bind_to_parent(argv, folder.path if name == "scheduler" else None),
            folder.path,
            report=self._report,
            on_line=self._pass_on,
            on_change=self._tell_status,
            cores=cores,
            hang_timeout_s=find_hang_timeout_s(self._settings, name),
            rules=OPTIONAL if name in _WITHOUT_IT else ESSENTIAL,
            is_worker=name != "scheduler",
            meanwhile=_WITHOUT_IT.get(name, ""),
        )
        self._processes[name] = process
        self._ends[name] = asyncio.create_task(process.run(), name=f"supervise-{name}")

    def _pass_on(self, name: str, line: str) -> bool:
        is_shown = self._is_verbose or _INFO_LINE not in line
        if is_shown:
            self._tell_line(name, line)
        return is_shown

    async def _wait_ready(self, signum: asyncio.Task[int]) -> None:
        """Wait for a signal, or for the scheduler to serve: a generation has then gone through both workers.

        Raises:
            _GivenUp: a process ended too often. TimeoutError: load_timeout_s has passed; it names what is not ready.
        """
        waits = {
            name: asyncio.create_task(wait_serving(*peer), name=f"{name}-ready") for name, peer in self._peers.items()
        }

        def missing() -> list[str]:
            scheduler = waits["scheduler"]
            if scheduler.done() and scheduler.exception() is None:
                return []  # it has used the workers, also one whose health was not asked again since
            return [name for name, task in waits.items() if not task.done() or task.exception() is not None]

        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                while not waits["scheduler"].done() and not signum.done():
                    pending = [task for task in waits.values() if not task.done()]
                    await asyncio.wait(
                        {signum, *pending, *self._ends.values()},
                        timeout=_PROGRESS_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    self._check_processes()
                    self._show_progress(missing())
                for task in waits.values():
                    if task.done():
                        task.result()
                await self._wait_http(signum)
        except TimeoutError:
            raise TimeoutError(self._describe_wait(missing())) from None
        finally:
            for task in waits.values():
                task.cancel()
            await asyncio.gather(*waits.values(), return_exceptions=True)

    async def _wait_http(self, signum: asyncio.Task[int]) -> None:
        """Wait for the HTTP door, if there is one, or for a signal."""
        http = self._processes.get("http")
        while http is not None and not http.is_ready and not signum.done():
            await asyncio.sleep(_HTTP_LOOK_S)
            self._check_processes()

    def _show_progress(self, missing: list[str]) -> None:
        elapsed_s = self._elapsed_s
        for name in sorted(self._peers.keys() - set(missing) - self._reported):
            self._reported.add(name)
            if name != "scheduler":
                what = "loaded" if name in self._processes else "answered"
                self._report(f"{name}: {what} after {elapsed_s:.1f} s")
        if missing and elapsed_s >= self._next_progress_s:
            self._next_progress_s = elapsed_s + _PROGRESS_S + min(elapsed_s / 4, 8.0)
            doing = self._describe_wait(missing)
            self._report(f"{doing}, {elapsed_s:.0f} s")
            self._notifier.status(doing)
            self._notifier.extend_timeout(10 * _PROGRESS_S)

    def _describe_wait(self, missing: list[str]) -> str:
        """Say what the missing peers are doing, as far as the launcher can tell."""
        workers = [name for name in missing if name != "scheduler"]
        loading = [name for name in workers if name in self._processes]
        waits = [f"{' and '.join(loading)}: loading weights"] if loading else []
        foreign = [name for name in workers if name not in self._processes]
        waits += [f"{name}: no answer at {self._peers[name].address} yet" for name in foreign]
        return "; ".join(waits) or "scheduler: first generation"

    # Stop

    async def _stop(self) -> int:
        """Stop the scheduler first, so that live requests can finish on the workers; a second signal stops all now."""
        settings = self._settings
        self._notifier.stopping()
        self._notifier.extend_timeout(settings.drain_timeout_s + 2 * _STOP_SLACK_S)
        drain_s = f"{settings.drain_timeout_s:g} s"
        self._report(f"stopping: running requests have up to {drain_s} (Ctrl-C again to stop now)")
        forced = asyncio.create_task(self._signals.get())
        scheduler = self._processes["scheduler"]
        try:
            scheduler.let_end(signal.SIGTERM)
            await asyncio.wait(
                {self._ends["scheduler"], forced},
                timeout=settings.drain_timeout_s + _STOP_SLACK_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if forced.done():
                scheduler.signal(signal.SIGTERM)
                return EXIT_OF_SIGNAL + forced.result()
            await self._stop_workers(forced)
            return EXIT_OK
        finally:
            forced.cancel()

    async def _stop_workers(self, forced: asyncio.Task[int]) -> None:
        workers = {end for name, end in self._ends.items() if name != "scheduler"}
        for name, process in self._processes.items():
            if name != "scheduler":
                process.let_end(signal.SIGTERM)
        if workers:
            ended = asyncio.create_task(asyncio.wait(workers, timeout=_WORKER_STOP_S))
            await asyncio.wait({ended, forced}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()

    async def _end_all(self) -> None:
        """Kill all. The scheduler first has a moment to tell its clients and to remove its socket; a worker's is in the
        run folder."""
        for process in self._processes.values():
            process.let_end()
        if (scheduler := self._processes.get("scheduler")) is not None:
            scheduler.signal(signal.SIGTERM)
            scheduler.signal(signal.SIGINT)  # the second signal: without waiting for live requests
            await asyncio.wait({self._ends["scheduler"]}, timeout=_FORCED_STOP_S)
        for process in self._processes.values():
            process.signal(signal.SIGKILL)
        if self._ends:
            await asyncio.wait(self._ends.values())


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the service; not SIGHUP if it was ignored at the start, as under nohup.

    SIGINT stops it even if it was ignored: a script starts every `command &` with SIGINT ignored.
    """
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def worker_flags(settings: Settings, role: Role, address: str) -> list[str]:
    """Return the flags of a worker of this service that listens at `address`."""
    return [*to_flags(settings.for_worker(role, address)), *_parent_flag()]


def _parent_flag() -> list[str]:
    return ["--exit-with-parent", str(os.getpid())]
