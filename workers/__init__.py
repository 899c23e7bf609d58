"""A worker process: drafter or verifier, each with a device of its own (installed as minedraft_workers).

May import: values, places, security, settings, rpc, v1, models, process, rounds, proposers, execution, sampling,
channels.
"""

from minedraft.process.grpc_polling import poll_in_place
from minedraft.process.quiet_start import quiet_start

poll_in_place()


def run_worker() -> None:
    """Run `minedraft-worker`: see `quiet_start`."""
    with quiet_start():
        from minedraft_workers.main import main

        main()
