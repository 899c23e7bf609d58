"""The lines of the log: both forms, requests, levels, and the limit of those that repeat."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from minedraft.process.logs import RateLimit, log_request, set_up_log

logger = logging.getLogger("minedraft.pipeline")


Stderr = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def stderr(capsys: Stderr) -> Iterator[Stderr]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield capsys
    root.handlers[:], logging.raiseExceptions = handlers, raises
    root.setLevel(level)
    for name in ("minedraft", "minedraft_workers", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(stderr: Stderr) -> list[dict[str, str]]:
    return [json.loads(line) for line in stderr.readouterr().err.splitlines()]


def test_a_line_of_json_has_its_parts_and_the_request_that_it_is_about(stderr: Stderr) -> None:
    set_up_log("scheduler", "json", "info")
    logger.info("serving on %s", "unix:/a")
    logger.warning("ended", extra={"request_id": "abc"})
    token = log_request.set('x"\n')
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("a request failed")
    log_request.reset(token)
    first, second, third = lines(stderr)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO", "process": "scheduler", "logger": "minedraft.pipeline", "message": "serving on unix:/a",
    }  # fmt: skip
    assert (second["request_id"], second["level"]) == ("abc", "WARNING")
    assert third["request_id"] == 'x"\n'
    assert third["error"].endswith("ValueError: no")


def test_a_line_of_text_names_the_request_and_stays_one_line(stderr: Stderr) -> None:
    set_up_log("drafter", "text")
    logger.warning("ended", extra={"request_id": "a\nb"})
    logger.warning("stopped")
    first, second = stderr.readouterr().err.splitlines()
    assert first.endswith(r"WARNING minedraft.drafter [request 'a\nb'] ended")
    assert second.endswith("WARNING minedraft.drafter stopped")


def test_levels_are_those_of_this_package_and_others_are_as_quiet_as_before(stderr: Stderr) -> None:
    set_up_log("scheduler", "json", "debug")
    logger.debug("ours")
    logging.getLogger("asyncio").debug("theirs")
    logging.getLogger("grpc").warning("theirs too")
    assert [line["message"] for line in lines(stderr)] == ["ours", "theirs too"]
    set_up_log("scheduler", "json", "error")
    logger.warning("dropped")
    assert lines(stderr) == []


def test_a_warning_that_repeats_is_counted_and_other_lines_pass() -> None:
    now_s = 100.0
    limit = RateLimit(lambda: now_s)

    def passed(text: str, *args: object, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("minedraft", level, "f.py", 1, text, args, None)
        return record.getMessage() if limit.filter(record) else None

    assert [passed("lost: %s", n) for n in range(8)] == [*(f"lost: {n}" for n in range(5)), None, None, None]
    assert passed("other") == "other"
    assert passed("lost: %s", 9, level=logging.INFO) == "lost: 9"
    assert [passed("%s", f"setting {n}") for n in range(9)] == [f"setting {n}" for n in range(9)]
    now_s += 10
    assert passed("lost: %s", 10) == "lost: 10 (3 lines like this were left out)"
    assert passed("lost: %s", 11) == "lost: 11"


def test_a_closed_stream_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_log("scheduler")
    stream.close()
    logger.warning("nobody reads this")
