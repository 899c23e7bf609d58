"""The log of a process: lines of text or of JSON to stderr, with the request that a line is about.

A line never has the text of a prompt or of an answer. A warning that comes again and again is left out for a while,
and counted. What cannot be written is dropped and counted: a full disk, a closed terminal and a pipe that nobody reads
neither end nor stop the service.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from minedraft.process.output import LossyWriter

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

log_request: ContextVar[str] = ContextVar("log_request", default="")
"""The id of the request that the present task works for; a line can name another one by `extra={"request_id": ...}`."""

_BURST = 5
_WINDOW_S = 10.0
_MAX_KINDS = 1024  # of lines whose number is kept


class TextFormatter(logging.Formatter):
    """12:30:59.123 WARNING minedraft.scheduler [request 5f…] what happened"""

    def __init__(self, process: str) -> None:
        super().__init__(
            f"%(asctime)s.%(msecs)03d %(levelname)s minedraft.{process} %(about)s%(message)s", datefmt="%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        request_id = request_of(record)
        shown = request_id if request_id.isprintable() else repr(request_id)
        record.about = f"[request {shown}] " if request_id else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object for each line.

    Its keys: time (UTC), level, process, logger, message, and where there is one request_id and error (a traceback).
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = plain_line(self._process, record.levelname, record.getMessage(), record.created)
        line["logger"] = record.name
        if request_id := request_of(record):
            line["request_id"] = request_id
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def plain_line(process: str, level: str, message: str, at_s: float | None = None) -> dict[str, Any]:
    """Return what every JSON line has. at_s: seconds since the epoch; default: now."""
    moment = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": stamp, "level": level, "process": process, "message": message}


def request_of(record: logging.LogRecord) -> str:
    """Return the id of the request that a line is about; "" if it is about none."""
    return str(getattr(record, "request_id", "") or log_request.get())


@dataclass(slots=True)
class _Kind:
    begun_s: float
    num_shown: int = 0
    num_hidden: int = 0


class RateLimit(logging.Filter):
    """Lets few warnings and errors of one kind (one place in the code) pass in a while; the next one that passes
    after that says how many did not. Other lines always pass.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now_s = self._clock()
        text = str(record.msg) if record.msg != "%s" else record.getMessage()
        key = record.name, record.levelno, text
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _Kind(now_s)
        if now_s - kind.begun_s >= _WINDOW_S:
            num_hidden = kind.num_hidden
            kind.begun_s, kind.num_shown, kind.num_hidden = now_s, 0, 0
            if num_hidden:
                record.msg = f"{record.getMessage()} ({num_hidden} lines like this were left out)"
                record.args = ()
        if kind.num_shown >= _BURST:
            kind.num_hidden += 1
            return False
        kind.num_shown += 1
        return True


class LossyHandler(logging.Handler):
    """Writes each record as a line to stderr, or drops it; see `LossyWriter`."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = LossyWriter(sys.stderr, self._describe_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write_line(self.format(record))
        except Exception:  # of the formatting
            self.handleError(record)

    def _describe_dropped(self, num_lines: int) -> str:
        message = f"lines of this log that could not be written: {num_lines}"
        return self.format(logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": message}))


def set_up_log(process: str, log_format: LogFormat = "text", level: LogLevel = "info") -> None:
    """Write the log of this process to stderr from now on, in this way alone.

    Args:
        process: its name in each line.
        level: the least of the lines of this package; of others, warnings are the least.
    """
    handler = LossyHandler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    handler.addFilter(RateLimit())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.raiseExceptions = False
    for name in ("minedraft", "minedraft_workers", "__main__"):
        logging.getLogger(name).setLevel(level.upper())
