"""The table of exit codes."""

from __future__ import annotations

from minedraft.process.entry import COMMAND_EXITS, LAUNCH_EXITS
from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Results


def exits_table(results: Results) -> str:
    """Return what each exit code means, as `--help` says it: of `minedraft`, and of the programs that serve."""
    codes = sorted({*COMMAND_EXITS, *LAUNCH_EXITS}, key=lambda code: int(code.removesuffix("+N")))
    rows = [[code, COMMAND_EXITS.get(code, ""), LAUNCH_EXITS.get(code, "")] for code in codes]
    return to_table(["exit code", "`minedraft ...`", "a program that serves"], rows, text=(0, 1, 2))
