"""How a program ends: what it says, and its exit code."""

import importlib
import inspect
import logging
import pydoc
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from minedraft.errors import ConfigError, ConfigErrors, Draining, InvalidRequest, ModelError
from minedraft.process.entry import (
    COMMAND_EXITS,
    EXIT_USAGE,
    LAUNCH_EXITS,
    SERVICE_EXITS,
    run_command,
    run_logged,
)


@click.command()
@click.option("--size", type=int)
def command(size):
    raise AssertionError("replaced in each test")


def ending(monkeypatch, body, *arguments):
    monkeypatch.setattr(command, "callback", body)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    return command


def raises(error):
    def body(size):
        raise error

    return body


ENDS = [
    (lambda size: size, 9, []),
    (lambda size: None, 0, []),
    (raises(ConfigError("listen", "x", "no")), 78, ["listen is 'x': no"]),
    (raises(ModelError("target", "t", "no")), 78, ["target is 't': no"]),
    (raises(ConfigErrors([ConfigError("a", 1, "no"), ConfigError("b", 2, "no")])), 78, ["a is 1: no", "b is 2: no"]),
    (raises(Draining("it stops")), 3, ["it stops"]),
    (raises(InvalidRequest("n", 0, "no")), 78, ["n is 0: no"]),
    (raises(KeyboardInterrupt()), 130, []),
    (raises(click.Abort()), 130, []),
]


@pytest.mark.parametrize(("body", "code", "lines"), ENDS)
def test_an_end_has_its_exit_code_and_its_words(monkeypatch, body, code, lines):
    said = []
    program = ending(monkeypatch, body, "--size", "9")
    assert run_command(program, "p", report=said.append, show_usage=raises(AssertionError()), failed_code=3) == code
    assert said == lines


def test_a_wrong_command_line_is_a_wrong_configuration(monkeypatch):
    said, program = [], ending(monkeypatch, raises(AssertionError()), "--size", "many")
    code = run_command(program, "p", report=raises(AssertionError()), show_usage=said.append)
    assert (code, said[0].format_message()) == (78, "Invalid value for '--size': 'many' is not a valid integer.")


@pytest.mark.parametrize(
    ("body", "arguments", "code", "line"),
    [
        (raises(ConfigError("listen", "x", "no")), (), 78, "ERROR minedraft.drafter listen is 'x': no"),
        (raises(Draining("it stops")), (), 70, "ERROR minedraft.drafter it stops"),
        (raises(ZeroDivisionError("by 0")), (), 70, "CRITICAL minedraft.drafter ZeroDivisionError: by 0"),
        (raises(AssertionError()), ("--what",), 78, "ERROR minedraft.drafter No such option"),
    ],
)
def test_a_program_that_logs_has_its_end_in_its_log(monkeypatch, capsys, body, arguments, code, line):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a new process
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    assert run_logged(ending(monkeypatch, body, *arguments), "p", "drafter") == code
    said = capsys.readouterr().err
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} " + re.escape(line), said), said


@pytest.mark.parametrize(
    "error",
    [None, ConfigError("listen", "x", "no"), ConfigErrors([ConfigError("a", 1, "no")]), InvalidRequest("n", 0, "no")],
)
def test_all_that_is_wrong_with_what_a_user_asks_ends_alike(monkeypatch, error):
    program = ending(monkeypatch, raises(error), "--size", "9" if error else "many")
    code = run_command(program, "p", report=str, show_usage=str, wrong_code=EXIT_USAGE)
    assert code == EXIT_USAGE == 2


PROGRAMS = {
    "minedraft": "minedraft.cli.main",
    "minedraft-launch": "minedraft.cli.launch",
    "minedraft-scheduler": "minedraft.server.command",
    "minedraft-http": "minedraft.http.main",
    "minedraft-worker": "minedraft_workers.main",
}
SCRIPTS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["scripts"]
# What an installed command does, interrupted where it looks for a module.
INTERRUPTED = """
import importlib, os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.exit(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])())
"""
# One of the first modules that it imports, and one of the last.
IMPORTED = {
    "minedraft": ("click", "minedraft.cli.console"),
    "minedraft-launch": ("asyncio", "minedraft.settings.service"),
    "minedraft-scheduler": ("asyncio", "minedraft.settings.loading"),
    "minedraft-http": ("asyncio", "uvicorn"),
    "minedraft-worker": ("asyncio", "minedraft_workers.composition"),
}


@pytest.mark.parametrize(("name", "imported"), [(name, each) for name in PROGRAMS for each in IMPORTED[name]])
def test_ctrl_c_while_a_program_loads_is_no_traceback(name, imported):
    command = [sys.executable, "-c", INTERRUPTED, *SCRIPTS[name].split(":"), imported]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# It is interrupted at work, and again while Python clears away what it leaves.
INTERRUPTED_TWICE = """
import atexit, signal, sys
import click
from minedraft.cli.console import run
from minedraft.process.quiet_start import quiet_start
def interrupt():
    signal.raise_signal(signal.SIGINT)
atexit.register(interrupt)
@click.command()
def program():
    interrupt()
with quiet_start():
    interrupt() if sys.argv.pop() == "loading" else run(program, "p")
"""


@pytest.mark.parametrize("moment", ["loading", "working"])
def test_a_second_ctrl_c_while_a_program_ends_is_no_traceback(moment):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_TWICE, moment], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (-signal.SIGINT, "", "")


def test_the_installed_commands_are_the_programs():
    assert list(SCRIPTS) == list(PROGRAMS)
    for name, module in PROGRAMS.items():
        start = inspect.getsource(pydoc.locate(SCRIPTS[name].replace(":", ".")))
        assert f"from {module} import main\n" in start
        assert f"Run `{name}`" in start


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_each_program_tells_its_version(program):
    shown = CliRunner().invoke(importlib.import_module(program).command, ["--version"], prog_name="p")
    assert (shown.exit_code, shown.output) == (0, f"p {version('minedraft')}\n")


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_the_help_of_each_program_tells_its_exit_codes(program):
    exits = {"minedraft.cli.main": COMMAND_EXITS, "minedraft.cli.launch": LAUNCH_EXITS}.get(program, SERVICE_EXITS)
    shown = CliRunner().invoke(importlib.import_module(program).command, ["--help"]).output
    told = [line.strip() for line in shown[shown.index("Exit codes:") :].splitlines()]
    assert told == ["Exit codes:", *(f"{code:5} {meaning}" for code, meaning in exits.items())]


def test_the_help_cuts_no_command_short():
    shown = CliRunner().invoke(importlib.import_module("minedraft.cli.main").command, ["--help"]).output
    assert "..." not in shown.partition("Commands:")[2]
    assert all(f"\n  {name}" in shown for name in ("generate", "vllm-doctor"))
