"""The clients' environment in the cache: a virtual environment, and node's packages beside it where there is node."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minedraft.cli.console import say
from scripts.lib.peers.engines.base import Say
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.errors import PeerFailed

IF_INSTALLABLE = "--if-installable"
_PYTHON = ("openai==3.57.0", "langchain-openai==1.7.4", "llm==0.36", "llm-comply==0.5.0", "schemathesis==4.32.5")
_NODE = ("openai@7", "ai@7", "@ai-sdk/openai-compatible@3")


class Clients:
    """The clients' environment.

    Args:
        npm: the command that installs packages for node; None: there is no node.
    """

    def __init__(self, npm: str | None) -> None:
        self._npm = npm
        version = " ".join((*_PYTHON, *(_NODE if npm is not None else ())))
        self._environment = Environment("openai-clients", version, size=400_000_000, minutes=1)

    @property
    def folder(self) -> Path:
        return self._environment.folder

    def install(self, say: Say) -> None:
        """Make it, or do nothing if it is there.

        Raises:
            ConfigError: no room, or the cache cannot be written. PeerFailed: a command failed.
        """
        if self._environment.installed() is None:
            self._environment.install(self._install, say)

    def _install(self, environment: Environment, say: Say) -> Mapping[str, Any]:
        folder = environment.folder
        environment.run([sys.executable, "-m", "venv", folder])
        say("openai-clients: installing with pip")
        environment.run([folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", *_PYTHON])
        if self._npm is not None:
            say("openai-clients: installing with npm")
            try:
                environment.run([self._npm, "install", "--no-audit", "--no-fund", "--prefix", folder, *_NODE])
            except PeerFailed as error:
                say(f"{error}\n  the tests of node's clients are skipped")
                return {"python": list(_PYTHON), "node": []}
        return {"python": list(_PYTHON), "node": list(_NODE) if self._npm is not None else []}


def main() -> None:
    """Make the environment, then become pytest with this process's arguments. `--if-installable` before them:
    end well where the packages cannot be had."""
    clients, arguments = Clients(shutil.which("npm")), sys.argv[1:]
    is_optional = arguments[:1] == [IF_INSTALLABLE]
    try:
        clients.install(say)
    except PeerFailed as error:
        if not is_optional:
            raise
        say(f"left out: {error}")
        return
    command = [sys.executable, "-m", "pytest", *arguments[is_optional:]]
    os.execve(command[0], command, os.environ | {"MINEDRAFT_CLIENTS": str(clients.folder)})  # noqa: S606


if __name__ == "__main__":
    main()
