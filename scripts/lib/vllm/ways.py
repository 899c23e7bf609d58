"""The ways to decode that are compared: vLLM alone, with its own draft model, and with the plugin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from minedraft.device import format_cores
from minedraft.models.folder import DRAFT_VOCAB_NAME
from minedraft.vllm.guide.switches import switching_flags
from scripts.lib.vllm.environment import PluginEnvironment

MODEL_NAME = "peer"
KV_GIB = 1


class Way(StrEnum):
    """How the target decodes. own: vLLM's own speculation with the same draft model, in its own process."""

    AR = "ar"
    AR_WIDE = "ar, both cores"
    OWN = "vllm draft model"
    SERIAL = "serial"
    ALTERNATING = "alternating"

    @property
    def groups(self) -> int:
        """Groups of requests that take turns; 0 without the plugin."""
        return {Way.SERIAL: 1, Way.ALTERNATING: 2}.get(self, 0)


@dataclass(frozen=True, slots=True)
class Places:
    """Where processes run: each of them has one core.

    Attributes:
        verifier: of vLLM's engine. drafter: of the drafter, and of the HTTP server and this client.
    """

    verifier: int
    drafter: int

    def of(self, way: Way) -> tuple[int, ...]:
        """Return the cores that the target computes on."""
        return (self.drafter, self.verifier) if way is Way.AR_WIDE else (self.verifier,)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What a server is started with.

    Attributes:
        draft_len: drafts for each request and round.
        max_in_flight: requests that it must be able to decode together. max_len: tokens of the longest.
        folder: an empty private folder. wait_ms: see the plugin's settings.
    """

    target: Path
    draft: Path
    dtype: str
    draft_len: int
    max_in_flight: int
    max_len: int
    folder: Path
    wait_ms: float = 1000.0

    def argv(self, way: Way, python: Path, drafter: str) -> list[str]:
        """Return the command line of a way's server. drafter: address of the drafter, for those with the plugin."""
        words: list[str | Path] = [
            *(python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self.target, "--served-model-name", MODEL_NAME, "--uds", self.socket(way)),
            *("--dtype", self.dtype, "--max-model-len", str(self.max_len), "--max-num-seqs", str(self.max_in_flight)),
            *("--no-enable-prefix-caching", "--enforce-eager", "--generation-config", "vllm"),
            "--disable-uvicorn-access-log",
        ]
        if way is Way.OWN:
            model = str(plain_folder(self.draft, self.folder))
            own = {"method": "draft_model", "model": model, "num_speculative_tokens": self.draft_len}
            words += ["--speculative-config", json.dumps(own)]
        elif way.groups:
            words += switching_flags("V1", drafter, self.draft_len, groups=way.groups, wait_ms=self.wait_ms)
        return [str(word) for word in words]

    @property
    def times(self) -> Path:
        """The file that makes the drafter slow once it is there."""
        return self.folder / "times.json"

    def socket(self, way: Way) -> Path:
        return self.folder / f"{way.name.lower()}.sock"


def plain_folder(model: Path, folder: Path) -> Path:
    """Return a folder with a model's files but for the list of the ids that it can draft: vLLM takes every file of
    tensors for weights."""
    plain = folder / "draft"
    plain.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name != DRAFT_VOCAB_NAME and not (plain / path.name).exists():
            (plain / path.name).symlink_to(path)
    return plain


def server_variables(way: Way, places: Places, environment: PluginEnvironment) -> dict[str, str]:
    """Return the variables of a server's process: one thread on each core that the target computes on."""
    cores = places.of(way)
    return environment.variables() | {
        "VLLM_CPU_OMP_THREADS_BIND": format_cores(cores),
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
    }
