"""vLLM's own environment in the cache, with the plugin and what its tests need."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minedraft.cli.console import say
from scripts.lib.env.pins import CONSTRAINTS, pinned
from scripts.lib.peers.engines.base import Say
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.vllm_cpu import VllmCpu

ROOT = Path(__file__).parents[3]
# Beside what vLLM brings. They are installed without their dependencies, which vLLM has in versions of its own choice.
_PLUGIN = ("grpcio-status", "grpcio-health-checking", "grpcio-reflection")
_TESTS = ("pytest", "pluggy", "iniconfig", "Pygments", "pytest-asyncio", "pytest-timeout", "hypothesis",
          "sortedcontainers", "psutil", "scipy")  # fmt: skip
_RAY = "ray==2.60.0"
IF_CACHED = "--if-cached"


class PluginEnvironment:
    """The environment that vLLM runs in with the plugin: that of `scripts/bench/peers`, and this checkout in it."""

    def __init__(self) -> None:
        self._requirements = pinned((*_PLUGIN, *_TESTS), CONSTRAINTS.read_text(encoding="utf-8"))
        # The entry points are those of the project file; the code is always that of the checkout.
        parts = [*self._requirements, _RAY, str(ROOT), (ROOT / "pyproject.toml").read_text(encoding="utf-8")]
        version = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        self._vllm = VllmCpu()
        self._added = Environment("vllm-plugin", version, size=500_000_000, minutes=1)

    @property
    def python(self) -> Path:
        return self._vllm.python

    def missing(self) -> str | None:
        """Return what to say if it is not there."""
        if self._vllm.missing() is None and self._added.missing() is None:
            return None
        return "vLLM's environment is not in the cache: scripts/vllm --install (5 minutes, 4 GB)"

    def install(self, say: Say) -> None:
        """Make it, or do nothing if it is there.

        Raises:
            ConfigError: no room, or the cache cannot be written. PeerFailed: a command failed; the message names it
                and its log.
        """
        if self._vllm.missing() is not None:
            self._vllm.install(say)
        if self._added.missing() is not None:
            self._added.install(self._install, say)

    def variables(self) -> dict[str, str]:
        """Return the variables of a process that runs vLLM here."""
        return {
            "VLLM_CACHE_ROOT": str(self.python.parents[2] / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def _install(self, environment: Environment, say: Say) -> Mapping[str, Any]:
        pip: list[str | Path] = [self.python, "-m", "pip", "--disable-pip-version-check", "install"]
        say("vllm-plugin: installing what the plugin and its tests need, and Ray")
        environment.run([*pip, "--no-deps", *self._requirements])
        environment.run([*pip, _RAY])
        environment.run([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
        return {"requirements": [*self._requirements, _RAY]}


def main() -> None:
    """Make the environment and become its Python, with this process's arguments. `--if-cached` before them: make
    nothing, and end well if it is not there."""
    environment, arguments = PluginEnvironment(), sys.argv[1:]
    if arguments[:1] == [IF_CACHED]:
        arguments = arguments[1:]
        if (lacking := environment.missing()) is not None:
            say(f"left out: {lacking}")
            return
    environment.install(say)
    os.environ.pop("PYTHONPATH", None)  # it leads to packages of another Python
    os.execve(environment.python, [str(environment.python), *arguments], os.environ | environment.variables())  # noqa: S606


if __name__ == "__main__":
    main()
