"""Where results are to go is looked at first: an hour of measuring must not end with a folder that is not there."""

import os

import pytest
from click.testing import CliRunner

from minedraft.cli.bench import bench
from minedraft.cli.timeline import timeline
from minedraft.errors import ConfigError
from minedraft.settings.writable import check_writable_file


def test_a_file_that_cannot_be_written_is_told_and_one_that_can_stays(tmp_path, monkeypatch):
    earlier = tmp_path / "earlier.json"
    earlier.write_text("[]")
    for path in (None, earlier, tmp_path / "new.json"):
        check_writable_file("json", path)
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.json"]
    assert earlier.read_text() == "[]"
    for path, why in ((tmp_path, "a folder"), (tmp_path / "no" / "x.json", f"there is no folder {tmp_path / 'no'}")):
        with pytest.raises(ConfigError, match=f"json is .*: cannot be written: {why}"):
            check_writable_file("json", path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path in (earlier, tmp_path / "new.json"):
        with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
            check_writable_file("json", path)


def test_commands_look_before_they_work(tmp_path):
    missing = tmp_path / "no" / "out.svg"
    for command, arguments in (
        (bench, ["--server", f"unix:{tmp_path / 'none'}", "--json", str(missing)]),
        (timeline, [str(tmp_path / "no-trace.json"), "-o", str(missing)]),
    ):
        done = CliRunner().invoke(command, arguments)
        assert "cannot be written: there is no folder" in str(done.exception), done
