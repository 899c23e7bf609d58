"""The commands that users type.

May import: values, places, security, settings, client, rpc, models, text, process, launch, bench, observe, theory,
vllm, sim.
"""

from minedraft.process.quiet_start import quiet_start


def run_minedraft() -> None:
    """Run `minedraft`: see `quiet_start`."""
    with quiet_start():
        from minedraft.cli.main import main

        main()


def run_launch() -> None:
    """Run `minedraft-launch`: see `quiet_start`."""
    with quiet_start():
        from minedraft.cli.launch import main

        main()
