"""`minedraft-launch`: starts the whole service and keeps it running."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from minedraft.cli.console import progress_printer, run, say
from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, EXIT_OK
from minedraft.launch.placement import tell_unused_gpus
from minedraft.launch.preflight import check_machine, settle_draft_method
from minedraft.models.catalogue import Pair, ensure_pair, find_pair
from minedraft.process.entry import LAUNCH_EXITS, exit_lines, exit_or_die_again, tells_version
from minedraft.process.notify import READY_LINE, Notifier
from minedraft.process.start_extension import StartExtension
from minedraft.settings.flags import SettingsCommand, config_flag, settings_flags, unknown_flags
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings
from minedraft.settings.unused import unused
from minedraft.types import DraftMethod, Role

_EPILOG = f"""
\b
Examples:
  minedraft-launch                                     the default pair of models
  minedraft-launch --target DIR --draft DIR            your own pair of models
  minedraft-launch --target DIR --draft HEAD           a drafting head of the EAGLE family
  minedraft-launch --http 127.0.0.1:8000               with OpenAI's API and a chat page
  minedraft-launch --target DIR --draft-method ngram   no draft model
  minedraft-launch --config FILE.toml --check          check only, start nothing
\b
Then, in another terminal:
  minedraft chat
Ctrl-C stops the service after its running requests; a second Ctrl-C stops it now.
Under nohup, the service outlives its terminal.
A process that dies or hangs is started again, up to 5 times in 5 minutes (the drafter: as often as it takes).

{exit_lines(LAUNCH_EXITS)}
"""


@click.command(cls=SettingsCommand, epilog=_EPILOG, context_settings={"max_content_width": 120})
@settings_flags(Settings)
@config_flag
@click.option("--verbose", is_flag=True, help="Show everything that the three processes log.")
@click.option("--check", is_flag=True, help="Check settings, model folders, devices and addresses, then exit.")
@tells_version
def command(config: Path | None, check: bool, verbose: bool, **flags: object) -> None:
    """Start scheduler, drafter and verifier, and serve until a signal.

    Without flags, it serves the default pair of models, which the first start downloads. The line
    "ready on ADDR" says that requests are accepted.
    """
    exit_or_die_again(_launch(config, check, verbose, flags))


def main() -> NoReturn:
    """Run the installed command."""
    run(command, "minedraft-launch", EXIT_INTERNAL, EXIT_CONFIG)


def _launch(config: Path | None, check: bool, verbose: bool, flags: dict[str, object]) -> int:
    settings = load_settings(flags, config, unknown_flags())
    for line in unused(settings):
        say(f"minedraft-launch: {line}")
    notifier = Notifier()
    if settings.target is None:
        with StartExtension(notifier, "fetching the default models"):
            pair = find_pair() if check else ensure_pair(on_progress=progress_printer())
        if pair is not None:
            settings = _with_pair(settings, pair)
    settings = settle_draft_method(settings)
    check_machine(settings)
    if check:
        if settings.target is not None:
            from minedraft.launch.worker_check import check_workers

            say("the settings are valid; the workers now check the model folders")
            for role, kernels in check_workers(settings).items():
                click.echo(f"{role.value}: {kernels}")
        click.echo("all checks passed")
        return EXIT_OK
    if (hint := tell_unused_gpus(settings)) is not None:
        say(hint)
    return run_service(settings, is_verbose=verbose, notifier=notifier)


def run_service(
    settings: Settings,
    *,
    is_verbose: bool = False,
    worker_command: Sequence[str] = (),
    notifier: Notifier | None = None,
) -> int:
    """Run the launcher until a signal or a failure. Return the exit code.

    Args:
        settings: checked, with target and draft filled in.
        worker_command: of other workers than the product's, without role and flags.
        notifier: tells systemd.
    """
    from minedraft.launch.launcher import WORKER_COMMAND, Launcher
    from minedraft.launch.operator_log import OperatorLog

    log = OperatorLog(settings.log_format)
    launcher = Launcher(
        settings,
        log.report,
        lambda seconds: announce(settings, seconds),
        worker_command=worker_command or WORKER_COMMAND,
        is_verbose=is_verbose,
        pass_on=log.pass_on,
        notifier=notifier,
    )
    return asyncio.run(launcher.run())


def _with_pair(settings: Settings, pair: Pair) -> Settings:
    update: dict[str, object] = {"target": pair.target}
    if Role.DRAFTER in settings.own_workers and settings.draft_method in (None, DraftMethod.MODEL):
        update |= {"draft": pair.draft} if pair.draft is not None else {"draft_method": DraftMethod.NGRAM}
    return settings.model_copy(update=update)


def announce(settings: Settings, seconds: float) -> None:
    """Print to standard output that requests are accepted; dropped, as in `say`, if it cannot be written."""
    address = settings.listen_address.target
    shown = [f"--server {shlex.quote(address)}"]
    if settings.tls_cert is not None:
        shown.append("--tls-ca FILE")
    if settings.token_file is not None:
        shown.append(f"--token-file {shlex.quote(str(settings.token_file))}")
    with suppress(OSError):
        click.echo(
            f"{READY_LINE}{address} after {seconds:.1f} s (mode {settings.to_plain_values()['mode']}); stop with Ctrl-C"
        )
        click.echo(f'  minedraft generate {" ".join(shown)} "The capital of France is"')
        if settings.http is not None:
            url = f"{'http' if settings.tls_cert is None else 'https'}://{settings.http}"
            click.echo(f"  {url}/ to chat, {url}/v1 for OpenAI's clients")


if __name__ == "__main__":
    main()
