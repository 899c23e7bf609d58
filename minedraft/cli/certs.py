"""`minedraft certs`: makes a private CA, certificates for hosts and a token for clients."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from minedraft.cli.console import say
from minedraft.security.authority import TOKEN_NAME, make_certificates
from minedraft.security.tls import CA_NAME, CERT_NAME, KEY_NAME
from minedraft.settings.flags import UserPath

_EPILOG = """
\b
Examples:
  minedraft certs certs far.example,10.0.0.2 near.example,10.0.0.1
  minedraft certs certs far.example,10.0.0.2      again, before they expire
"""


@click.command(epilog=_EPILOG)
@click.argument("folder", type=UserPath())
@click.argument("hosts", nargs=-1, required=True, metavar="HOST[,NAME...]...")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=365, metavar="N", help="Days that they are valid. [default: 365]"
)
def certs(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Make a private CA in FOLDER, a certificate of it for each HOST, and a token for clients.

    Each HOST is a name or an IP address, and after commas all other names by which it is called. FOLDER/HOST is what
    that host needs; copy it there. The CA and the token are kept if FOLDER has them. Whoever has a key of a host can
    act as a worker or a scheduler; whoever has FOLDER/ca.key.pem can make such keys.
    """
    places = make_certificates(folder, list(hosts), days)
    for place in places:
        click.echo(str(place))
    token, ca, host = (shlex.quote(str(path)) for path in (folder / TOKEN_NAME, folder / CA_NAME, places[0]))
    say(
        "a worker for other hosts:\n"
        f"  minedraft-worker ... --listen HOST:PORT --worker-tls {host}\n"
        f"  minedraft-launch ... --draft-address HOST:PORT --worker-tls {host}\n"
        "a service for clients on other hosts:\n"
        f"  minedraft-launch ... --listen HOST:PORT --tls-cert {host}/{CERT_NAME} --tls-key {host}/{KEY_NAME} "
        f"--token-file {token}\n"
        "its clients:\n"
        f"  minedraft generate --server HOST:PORT --tls-ca {ca} --token-file {token} ..."
    )
