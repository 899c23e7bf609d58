"""`minedraft`: the commands for users of a running service."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click

from minedraft.cli.console import run
from minedraft.process.entry import COMMAND_EXITS, exit_lines, tells_version

# name -> module that defines a click command of that name; imported when the command is used.
_COMMANDS = {
    "generate": "minedraft.cli.generate",
    "chat": "minedraft.cli.chat",
    "status": "minedraft.cli.status",
    "models": "minedraft.cli.models",
    "top": "minedraft.cli.top",
    "timeline": "minedraft.cli.timeline",
    "bench": "minedraft.cli.bench",
    "certs": "minedraft.cli.certs",
    "predict": "minedraft.cli.forecast.predict",
    "simulate": "minedraft.cli.forecast.simulate",
    "vllm-doctor": "minedraft.cli.plugins.vllm_doctor",
}
_WHOLE = 1000  # characters


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command), f"{cmd_name} is not a command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command's first sentence whole; click would cut it to one line."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(_WHOLE)) for name, each in commands if each is not None])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and (near := get_close_matches(args[0], _COMMANDS, 1)):
            ctx.fail(f"No such command '{args[0]}'. (Did you mean '{near[0]}'?)")
        return super().resolve_command(ctx, args)


@click.command(
    cls=_LazyGroup,
    epilog=f"""
\b
Start a service first, in another terminal:
  minedraft-launch
\b
Then:
  minedraft chat
  minedraft generate "Once upon a time"
  minedraft status --watch

{exit_lines(COMMAND_EXITS)}
""",
)
@tells_version
def command() -> None:
    """Use a running MineDraft service, which drafts with a small model and verifies with a large one."""


def main() -> NoReturn:
    """Run the installed command."""
    run(command, "minedraft")


if __name__ == "__main__":
    main()
