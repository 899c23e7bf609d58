"""What the launcher shows the operator on stderr: lines of its own, and those of the processes."""

from __future__ import annotations

import json
import sys

from minedraft.process.logs import LogFormat, plain_line
from minedraft.process.output import LossyWriter

_OWN_NAME = "launcher"


class OperatorLog:
    """Lines of text, or of JSON. It neither waits for the reader of stderr nor raises; see `LossyWriter`.

    Args:
        log_format: that of the processes' lines.
    """

    def __init__(self, log_format: LogFormat) -> None:
        self._is_json = log_format == "json"
        self._writer = LossyWriter(sys.stderr, self._describe_dropped)

    def report(self, text: str) -> None:
        """Show a line of the launcher."""
        self._writer.write_line(_to_json(_OWN_NAME, "INFO", text) if self._is_json else text)

    def pass_on(self, name: str, line: str) -> None:
        """Show a line of the process `name`; in JSON as it is, unless it is none, as the last words of a process that
        crashed are."""
        if not self._is_json:
            self._writer.write_line(f"{name} | {line}")
        else:
            self._writer.write_line(line if line.startswith("{") else _to_json(name, "ERROR", line))

    def _describe_dropped(self, num_lines: int) -> str:
        message = f"lines of this log that could not be written: {num_lines}"
        return _to_json(_OWN_NAME, "WARNING", message) if self._is_json else message


def _to_json(process: str, level: str, message: str) -> str:
    return json.dumps(plain_line(process, level, message), ensure_ascii=False)
