"""`scripts/chaos`: random load with random faults, and a report of what came of it."""

from __future__ import annotations

from typing import Any

import click

from scripts.lib.chaos.main import options, run_command

EPILOG = """
\b
Examples:
  scripts/chaos --minutes 30 --json report.json       the default pair, its own service
  scripts/chaos --tiny --minutes 2 --seed 7           tiny models, the same load and faults again
  scripts/chaos --server unix:/run/m.sock --minutes 5 a service of minedraft-launch that runs already
\b
The report (--json): requests sent, answered, refused, wrong, lost; what leaked; faults by kind with the seconds until
the process was back and until a new request was answered (median, p99, maximum); what memory, descriptors and
threads did over time; facts about the machine. wrong, lost and leaked must be 0.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@options
@click.option("--fault-every-s", type=float, default=5.0, show_default=True, help="Mean seconds from fault to fault.")
@click.option("--keep-scheduler", is_flag=True, help="Do not kill the scheduler.")
def main(minutes: float | None, fault_every_s: float, keep_scheduler: bool, **given: Any) -> None:  # noqa: ANN401
    """Put a random load on a service while killing and stopping its processes.

    The answers of a pool of requests, greedy and seeded, are learnt first, while nothing goes wrong. Then clients ask
    for them again and again: whole, with abort, deadline, slow reading, or leaving early, some of them through a relay.
    Meanwhile workers are killed, stopped for a moment or for good, connections are cut, and a client with 16 streams is
    killed. Every answer must have the tokens that it has without faults, every request must end, and in the end all KV
    blocks, processes, descriptors and files must be back.

    Workers are killed no more often than the launcher forgives (5 times in 300 seconds). Ctrl-C ends the load; the
    checks and the report follow.

    Exit codes: 0 all held, 1 something did not, 2 wrong command line.
    """
    run_command(
        minutes=3.0 if minutes is None else minutes,
        fault_every_s=fault_every_s,
        restarts_scheduler=not keep_scheduler,
        **given,
    )


if __name__ == "__main__":
    main(prog_name="scripts/chaos")
