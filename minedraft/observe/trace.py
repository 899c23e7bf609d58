"""A trace of both workers, streamed to a file while the service runs: an observer.

The event loop only keeps what has happened; a thread writes it down four times a second. The file is a whole JSON
array after every write, so it is also valid if the service is killed between two; killed within one, its last record
may be torn, which Perfetto and `minedraft timeline` read over (the format's closing bracket is optional). When it is
full it is renamed to FILE.1, in place of an older one, and a new one begins; so is the file of an earlier run, whose
end may say why there is another one. The last hours are kept, and no more than twice the limit.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from minedraft.core import events
from minedraft.errors import ConfigError
from minedraft.observe.trace_events import TRACED, TraceRecords, lane_names

logger = logging.getLogger("minedraft.server")

MAX_FILE_BYTES = 64 << 20
_MAX_PENDING = 1 << 16
_WRITE_INTERVAL_S = 0.25
_CLOSE_TIMEOUT_S = 5.0
_TAIL = b"\n]\n"


class TraceFile:
    """A file that holds a JSON array of records, whole after each `append`.

    Args:
        head: the records that every file begins with.

    Raises:
        OSError: the file cannot be written; also from `append`, which leaves the file as it was.
    """

    def __init__(self, path: Path, head: Sequence[str], max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._head = head
        self._max_bytes = max_bytes
        self._begin()

    def append(self, records: Sequence[str]) -> None:
        """Add records."""
        data = b"".join([b",\n" + record.encode() for record in records])
        try:
            self._write(data + _TAIL)
        except OSError:
            with suppress(OSError):  # the part that was written is taken back
                os.ftruncate(self._file, self._end)
                os.pwrite(self._file, _TAIL, self._end)
            raise
        self._end += len(data)

    @property
    def is_full(self) -> bool:
        return self._end >= self._max_bytes

    def rotate(self) -> None:
        """Rename the file to FILE.1 and begin a new one."""
        os.close(self._file)
        self._begin()

    def close(self) -> None:
        os.close(self._file)

    def _begin(self) -> None:
        if self._path.is_file():
            os.replace(self._path, f"{self._path}.1")
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._end = 0
        data = b"[\n" + ",\n".join(self._head).encode()
        self._write(data + _TAIL)
        self._end = len(data)

    def _write(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._end + done)


class Tracer:
    """Writes the trace of one service. Made and observed in the event loop; `close` ends it.

    Args:
        title: what the trace is called in its viewer.
        clock: the pipeline's monotonic seconds.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        max_bytes: int = MAX_FILE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._records = TraceRecords()
        self._pending: deque[tuple[events.Event, float]] = deque()
        self._num_dropped = 0
        self._has_failed = False
        self._end = threading.Event()
        try:
            self._file = TraceFile(path, list(lane_names(title)), max_bytes)
        except OSError as error:
            raise ConfigError("trace", str(path), f"cannot be written: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        if isinstance(event, TRACED) and not self._has_failed:
            if len(self._pending) < _MAX_PENDING:
                self._pending.append((event, now_s))
            else:
                self._num_dropped += 1

    def close(self) -> None:
        """Write what has happened so far, and end."""
        self._end.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while not self._end.wait(_WRITE_INTERVAL_S):
                self._write()
            self._write()
        except OSError as error:
            self._has_failed = True
            self._pending.clear()
            logger.warning("the trace ends here: %s", error)
        finally:
            self._file.close()

    def _write(self) -> None:
        records: list[str] = []
        for _ in range(len(self._pending)):  # more may come meanwhile
            records.extend(self._records.of(*self._pending.popleft()))
        dropped, self._num_dropped = self._num_dropped, 0
        if dropped:
            records.append(self._records.note(f"{dropped} events were dropped: the disk is too slow", self._clock()))
        if records:
            self._file.append(records)
        if self._file.is_full:
            self._file.rotate()
            self._file.append(
                [self._records.note("the trace goes on: what was before is in the file .1", self._clock())]
            )
