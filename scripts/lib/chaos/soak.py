"""`scripts/soak`: hours of load, to see what grows."""

from __future__ import annotations

from typing import Any

import click

from scripts.lib.chaos.main import options, run_command

EPILOG = """
\b
Examples:
  scripts/soak --minutes 240 --json soak.json         four hours on the default pair
  scripts/soak --tiny --minutes 10                    tiny models: many more requests a second
  scripts/soak --minutes 60 --fault-every-s 300       with a fault every five minutes
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@options
@click.option(
    "--fault-every-s", type=float, default=0.0, show_default=True, help="Mean seconds between faults; 0: none."
)
def main(minutes: float | None, fault_every_s: float, **given: Any) -> None:  # noqa: ANN401
    """Put the load of `scripts/chaos` on a service for a long time, without faults or with few.

    The report has the same form. Of interest are its slopes: memory (MB an hour), descriptors and threads of each
    process, from the last two thirds of its life. Ctrl-C ends the load; the checks and the report follow.

    Exit codes: 0 all held, 1 something did not, 2 wrong command line.
    """
    run_command(
        minutes=60.0 if minutes is None else minutes, fault_every_s=fault_every_s, restarts_scheduler=False, **given
    )


if __name__ == "__main__":
    main(prog_name="scripts/soak")
