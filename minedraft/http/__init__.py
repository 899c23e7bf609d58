"""The OpenAI-compatible door: a process of its own, which is a client of the service.

May import: values, places, security, settings, client, process, text.
"""

from minedraft.process.grpc_polling import poll_in_place
from minedraft.process.quiet_start import quiet_start

poll_in_place()


def run_http() -> None:
    """Run `minedraft-http`: see `quiet_start`."""
    with quiet_start():
        from minedraft.http.main import main

        main()
