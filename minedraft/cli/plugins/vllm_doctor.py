"""`minedraft vllm-doctor`: says whether the installed vLLM has all that the plugin uses."""

from __future__ import annotations

import shlex
from dataclasses import asdict

import click

from minedraft.cli.console import print_json
from minedraft.errors import EXIT_OK
from minedraft.process.entry import EXIT_REQUEST
from minedraft.vllm.contracts import Finding, check_contracts, installed_version, is_supported, missing, supported_range
from minedraft.vllm.guide.known_limits import KNOWN_LIMITS
from minedraft.vllm.guide.switches import switching_flags

_ADDRESS, _NUM_DRAFTS = "unix:/run/drafter.sock", 4  # of the example


@click.command("vllm-doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def vllm_doctor(context: click.Context, as_json: bool) -> None:
    """Check the vLLM beside this package: its version, and every class and field that the plugin uses. Then list what
    is known not to work, and the flags of vLLM that switch the plugin on.

    Exits with 1 if the plugin refuses to run with it. vLLM itself is not imported.

    \b
    Examples:
      minedraft vllm-doctor
      minedraft vllm-doctor --json
    """
    found = installed_version()
    is_in_range = found is not None and is_supported(found)
    findings = check_contracts() if found is not None else []
    works = {path: is_in_range and not missing(findings, path) for path in ("V1", "V2")}
    if as_json:
        rows = [
            {
                "module": each.contract.module,
                "class": each.contract.owner,
                "name": each.name,
                "present": each.is_present,
            }
            for each in findings
        ]
        head = {"vllm": found, "supported": supported_range(), "in_range": is_in_range, "works": works}
        print_json(head | {"uses": rows, "known_limits": [asdict(each) for each in KNOWN_LIMITS]})
    else:
        _print(found, is_in_range, findings, works)
    context.exit(EXIT_OK if any(works.values()) else EXIT_REQUEST)


def _print(found: str | None, is_in_range: bool, findings: list[Finding], works: dict[str, bool]) -> None:
    if found is None:
        click.echo(f"vLLM is not installed; the plugin is made for vLLM {supported_range()}")
        return
    for each in findings:
        click.echo(f"{'present' if each.is_present else 'MISSING'}  {each.dotted}  ({each.contract.paths or 'shown'})")
    verdict = "in" if is_in_range else "not in"
    click.echo(f"vLLM {found} is {verdict} the range {supported_range()}")
    for path, is_working in works.items():
        click.echo(f"model runner {path}: {'all there' if is_working else 'the plugin refuses to run'}")
    click.echo("known not to work:")
    for limit in KNOWN_LIMITS:
        click.echo(f"  {limit.where}: {limit.what}\n    instead: {limit.instead}")
    for path in [path for path, is_working in works.items() if is_working]:
        click.echo(f"to switch it on with model runner {path}, start a drafter and give vLLM three more settings:")
        click.echo(f"  minedraft-worker drafter --model DRAFT --listen {_ADDRESS}")
        click.echo(f"  vllm serve TARGET {shlex.join(switching_flags(path, _ADDRESS, _NUM_DRAFTS))}")
