"""How a program ends: what it says, and its exit code."""

import logging
import re
import sys

import click
import pytest

from minedraft.errors import ConfigError, ConfigErrors, Draining, ModelError
from minedraft.process.entry import run_command, run_logged


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
