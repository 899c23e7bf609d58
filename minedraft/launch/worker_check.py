"""The last part of `--check`: the checks that need torch and transformers, made by the workers."""

from __future__ import annotations

import subprocess

from minedraft.errors import EXIT_CONFIG, EXIT_OK, ConfigError, ConfigErrors, InternalError
from minedraft.launch.launcher import WORKER_COMMAND, worker_flags
from minedraft.settings.service import Settings
from minedraft.types import Role

_NOWHERE = "unix:/check.sock"  # a check does not listen


def check_workers(settings: Settings) -> dict[Role, str]:
    """Have each worker that would be started check its model folder, without loading the weights.

    Returns:
        What each says of the kernels that it will use.

    Raises:
        ConfigErrors: the workers' own error lines.
    """
    children = {role: _start(settings, role) for role in settings.own_workers}
    errors: list[ConfigError] = []
    findings: dict[Role, str] = {}
    for role, child in children.items():
        findings[role], said = child.communicate()
        line = (said.strip().splitlines() or ["no output"])[-1]
        if child.returncode not in (EXIT_OK, EXIT_CONFIG):
            raise InternalError(f"{role.value}: the check ended with exit code {child.returncode}: {line}")
        if child.returncode == EXIT_CONFIG:
            errors.append(_Said(role, line.partition(f" minedraft.{role.value} ")[2] or line))  # without the time
    if errors:
        raise ConfigErrors(errors)
    return {role: said.strip() for role, said in findings.items()}


class _Said(ConfigError):
    """A worker's own error line, which already names field, value and limit."""

    def __init__(self, role: Role, line: str) -> None:
        super().__init__(role.value, "", line)
        self.args = (f"{role.value}: {line}",)


def _start(settings: Settings, role: Role) -> subprocess.Popen[str]:
    argv = [*WORKER_COMMAND, *worker_flags(settings, role, _NOWHERE), "--check"]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
