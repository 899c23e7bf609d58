"""The folders in the cache that peers are installed into, one each, and what was installed there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minedraft.models.cache import cache_root, check_free_space, check_writable, locked
from scripts.lib.peers.engines.base import Say
from scripts.lib.peers.engines.errors import PeerFailed

COMMAND = "scripts/bench/peers --install"
_SAY_EVERY_S = 60.0
_SHARE = re.compile(r"^\[ *(\d+%)\]", re.MULTILINE)  # as make's, of cmake


@dataclass(slots=True)
class Environment:
    """The folder of one peer. It counts as installed once its stamp is written, after the last step.

    Attributes:
        name: the peer's name.
        version: what is installed; another version is installed anew, over the old one.
        size: bytes that it takes about, to check for room.
        minutes: about how long installing takes, for the reader.
        asked_for: the words behind `--install` that install it; empty: its name.
    """

    name: str
    version: str
    size: int
    minutes: float
    asked_for: str = ""
    root: Path = field(default_factory=cache_root)

    @property
    def folder(self) -> Path:
        return self.root / "peers" / self.name

    @property
    def log(self) -> Path:
        return self.folder / "install.log"

    def installed(self) -> dict[str, Any] | None:
        """Return what the stamp says; None unless this version is installed completely."""
        try:
            stamp = json.loads((self.folder / "installed.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return stamp if isinstance(stamp, dict) and stamp.get("version") == self.version else None

    def missing(self) -> str | None:
        """Return what to say if it is not installed."""
        if self.installed() is not None:
            return None
        return f"not installed: {COMMAND} {self.asked_for or self.name} (about {self.minutes:.0f} minutes)"

    def install(self, steps: Callable[[Environment, Say], Mapping[str, Any]], say: Say) -> None:
        """Call `steps` unless this version is installed, and write the stamp with what they return.

        Raises:
            ConfigError: no room, or the cache cannot be written. PeerFailed: a command of `steps` failed.
        """
        check_writable(self.root)
        with locked(self.root, f"peer-{self.name}", lambda: say(f"{self.name}: waiting for another installation")):
            if self.installed() is not None:
                say(f"{self.name} {self.version} is installed in {self.folder}")
                return
            check_free_space(self.root, self.size)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log.write_bytes(b"")
            say(f"{self.name} {self.version}: about {self.minutes:.0f} minutes; everything goes to {self.folder}")
            began_s = time.monotonic()
            facts = dict(steps(self, say))
            seconds = round(time.monotonic() - began_s)
            stamp = {"version": self.version, "seconds": seconds, **facts}
            (self.folder / "installed.json").write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
            say(f"{self.name}: installed in {seconds} s")

    def run(self, argv: Sequence[str | Path], say: Say | None = None, **variables: str) -> None:
        """Run a command in the folder; its output goes to the log.

        Args:
            say: takes a line now and then with the share that is done, of a command whose output begins lines with it.
            variables: of its environment, besides this process's.

        Raises:
            PeerFailed: it cannot be started, or failed; the message has its last lines.
        """
        words = [str(word) for word in argv]
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(words)}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    words,
                    cwd=self.folder,
                    env=os.environ | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            except OSError as error:
                raise PeerFailed(f"{self.name}: {words[0]}: {error.strerror}") from None
        try:
            while not _has_ended(process, _SAY_EVERY_S):
                if say is not None and (shares := _SHARE.findall(self._said())):
                    say(f"{self.name}: {shares[-1]} done")
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode != 0:
            tail = self._said().splitlines()[-8:]
            raise PeerFailed("\n  ".join([f"{self.name}: {shlex.join(words[:6])} ... failed; see {self.log}", *tail]))

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def _has_ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True
