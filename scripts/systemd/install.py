"""Installs MineDraft's units, or removes them: `scripts/install-systemd`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from minedraft.errors import ConfigError
from minedraft.process.entry import EXIT_REQUEST, EXIT_USAGE, run_command

SOURCES = Path(__file__).parent
PROGRAMS = ("minedraft-launch", "minedraft-scheduler", "minedraft-worker")
SYSTEM_UNITS = (
    "minedraft.service",
    "minedraft.target",
    "minedraft-scheduler.service",
    "minedraft-drafter.service",
    "minedraft-verifier.service",
)
_INCLUDE = "# include: "
_HIDDEN = ("/home", "/root", "/run/user")  # by ProtectHome=
_RUNS_SYSTEMD = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie on the machine that runs the service.

    Attributes:
        bin: the folder of the commands.
        etc: of the settings.
        units: of the unit files.
        destdir: put before `etc` and `units` when files are written, by those who make packages.
    """

    bin: Path
    etc: Path
    units: Path
    destdir: Path = Path("/")

    def on_disk(self, path: Path) -> Path:
        return self.destdir / path.relative_to("/")


def assemble_unit(name: str, places: Places) -> str:
    """Return the text of a unit file: the template with its included parts and the places filled in."""
    text = (SOURCES / name).read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if line.startswith(_INCLUDE):
            lines += (SOURCES / line.removeprefix(_INCLUDE)).read_text(encoding="utf-8").splitlines()
        else:
            lines.append(line)
    return "\n".join(lines).replace("@BIN@", str(places.bin)).replace("@ETC@", str(places.etc)) + "\n"


def files(places: Places, *, is_user: bool) -> Iterator[tuple[Path, str, bool]]:
    """Yield (path, text, is it the operator's to change) of every file of an installation."""
    if is_user:
        yield places.units / "minedraft.service", assemble_unit("minedraft-user.service", places), False
    else:
        for name in SYSTEM_UNITS:
            yield places.units / name, assemble_unit(name, places), False
        yield places.etc / "minedraft.env", (SOURCES / "minedraft.env").read_text(encoding="utf-8"), True
    settings = (SOURCES / "minedraft.toml").read_text(encoding="utf-8")
    socket = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}") if is_user else "/run/minedraft"
    yield places.etc / "minedraft.toml", settings.replace("@LISTEN@", f"unix:{socket}/minedraft.sock"), True


def check(places: Places, *, is_user: bool) -> None:
    """Check the folder of the commands.

    Raises:
        ConfigError: a command is missing there, or a system unit could not see it.
    """
    if not is_user and str(places.bin.resolve()).startswith(_HIDDEN):
        limit = "a system service sees no home folders; install MineDraft elsewhere (/opt), or use --user"
        raise ConfigError("bin", str(places.bin), limit)
    for program in PROGRAMS:
        if not os.access(places.bin / program, os.X_OK):
            raise ConfigError("bin", str(places.bin), f"has no {program}; name the folder where MineDraft is installed")


def install(places: Places, *, is_user: bool, is_dry: bool) -> None:
    """Write unit files, and settings where there are none yet."""
    for path, text, is_operators in files(places, is_user=is_user):
        target = places.on_disk(path)
        if is_operators and target.exists():
            click.echo(f"keep     {target}")
            continue
        click.echo(f"write    {target}")
        if not is_dry:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            target.chmod(0o644)


def uninstall(places: Places, *, is_user: bool, is_dry: bool, purge: bool) -> None:
    """Remove the unit files, and with `purge` the settings."""
    for path, _, is_operators in files(places, is_user=is_user):
        target = places.on_disk(path)
        if is_operators and not purge:
            if target.exists():
                click.echo(f"keep     {target} (--purge removes it)")
        elif target.exists():
            click.echo(f"remove   {target}")
            if not is_dry:
                target.unlink()
    if purge and not is_dry and places.on_disk(places.etc).is_dir() and not list(places.on_disk(places.etc).iterdir()):
        places.on_disk(places.etc).rmdir()


def systemctl(*arguments: str, is_user: bool, is_dry: bool) -> None:
    """Call systemctl if this machine is run by systemd; a failure is shown and ends nothing."""
    program = shutil.which("systemctl")
    if program is None or not _RUNS_SYSTEMD.exists():
        return
    argv = [program, *(["--user"] if is_user else []), *arguments]
    click.echo(f"run      {' '.join(argv[:1] + argv[1:])}")
    if not is_dry:
        subprocess.run(argv, check=False)


def _places(is_user: bool, bin_folder: Path | None, prefix: Path | None, destdir: Path | None) -> Places:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    if is_user:
        etc, units = config / "minedraft", config / "systemd/user"
    elif prefix is None:
        etc, units = Path("/etc/minedraft"), Path("/etc/systemd/system")
    else:
        etc, units = Path("/etc/minedraft"), prefix / "lib/systemd/system"
    # Not resolved: the python of a virtual environment is a link to one outside of it.
    return Places(bin_folder or Path(sys.executable).parent, etc, units, destdir or Path("/"))


_EPILOG = """
\b
Examples:
  sudo scripts/install-systemd                 minedraft.service, and minedraft.target with its three units
  scripts/install-systemd --user               minedraft.service of this user
  scripts/install-systemd --dry-run            show what would be written
  scripts/install-systemd --prefix /usr --destdir build/root --bin /usr/bin      for a package
  sudo scripts/install-systemd --undo          stop and remove the units; settings stay
\b
Then name the models in the settings, and:
  sudo systemctl enable --now minedraft.service      one unit: the launcher supervises the processes
  sudo systemctl enable --now minedraft.target       or three units: systemd supervises them
  systemctl status minedraft
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--user/--system", "is_user", default=False, help="For the user's own systemd, or for the machine's.")
@click.option(
    "--bin", "bin_folder", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder with minedraft-launch and the other commands. [default: that of this Python]",
)  # fmt: skip
@click.option(
    "--prefix", type=click.Path(path_type=Path), metavar="DIR",
    help="Write units below DIR/lib/systemd/system. [default: /etc/systemd/system]",
)  # fmt: skip
@click.option("--destdir", type=click.Path(path_type=Path), metavar="DIR", help="Write everything below DIR.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--undo", is_flag=True, help="Stop and remove the units.")
@click.option("--purge", is_flag=True, help="With --undo: remove the settings too.")
def command(
    is_user: bool,
    bin_folder: Path | None,
    prefix: Path | None,
    destdir: Path | None,
    is_dry: bool,
    undo: bool,
    purge: bool,
) -> None:
    """Install MineDraft's units for systemd, or remove them. Nothing is started."""
    places = _places(is_user, bin_folder, prefix, destdir)
    names = ["minedraft.service"] if is_user else list(SYSTEM_UNITS)
    if undo:
        if destdir is None:
            systemctl("disable", "--now", *names, is_user=is_user, is_dry=is_dry)
        uninstall(places, is_user=is_user, is_dry=is_dry, purge=purge)
    else:
        check(places, is_user=is_user)
        install(places, is_user=is_user, is_dry=is_dry)
    if destdir is None:
        systemctl("daemon-reload", is_user=is_user, is_dry=is_dry)
    if not undo and not is_dry:
        flag = " --user" if is_user else ""
        click.echo(
            f"next: name the models in {places.etc}/minedraft.toml, then: systemctl{flag} enable --now minedraft"
        )


def main() -> NoReturn:
    """Run the command: exit with 0, 2 for a wrong command line or folder, 1 for a file that cannot be written."""

    def say(text: str) -> None:
        click.echo(text, err=True)

    try:
        code = run_command(
            command,
            "scripts/install-systemd",
            report=say,
            show_usage=lambda error: error.show(),
            wrong_code=EXIT_USAGE,
        )
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        code = EXIT_REQUEST
    sys.exit(code)


if __name__ == "__main__":
    main()
