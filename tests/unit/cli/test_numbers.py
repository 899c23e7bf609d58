"""Numbers on command lines: what is no number, or would keep a command busy for ever, is refused at once."""

import pytest
from click.testing import CliRunner

from minedraft.cli.forecast.predict import predict
from minedraft.cli.forecast.simulate import simulate
from minedraft.cli.status import status
from minedraft.cli.top import top


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (simulate, "--rate"),
        (simulate, "--acceptance"),
        (simulate, "--link-ms"),
        (simulate, "--drafter-dies-every"),
        (predict, "--acceptance"),
        (status, "--interval-s"),
        (top, "--interval-s"),
    ],
)
def test_nan_is_refused_by_every_flag_for_a_number(command, flag):
    done = CliRunner().invoke(command, [flag, "nan"])
    assert done.exit_code == 2, "a click error, which ends the installed command with 2"
    assert f"'{flag}': nan is not a number" in done.output


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (["--link-ms", "inf"], "is not in the range"),
        (["--prompt-len", "100000000"], "is not in the range"),
        (["--prompt-len", "1048576", "--output-len", "1"], "at most 1048576 tokens are simulated"),
    ],
)
def test_what_could_not_be_simulated_is_refused_at_once(arguments, limit):
    done = CliRunner().invoke(simulate, ["--target", "qwen3-8b", *arguments])
    assert limit in f"{done.output} {done.exception}"
