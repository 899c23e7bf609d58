"""The scheduler process: the service, its gRPC door, and the composition of both.

May import: values, places, settings, core, engine, rpc, v1, text, models, process, observe.
"""

from minedraft.process.grpc_polling import poll_in_place
from minedraft.process.quiet_start import quiet_start

poll_in_place()


def run_scheduler() -> None:
    """Run `minedraft-scheduler`: see `quiet_start`."""
    with quiet_start():
        from minedraft.server.command import main

        main()
