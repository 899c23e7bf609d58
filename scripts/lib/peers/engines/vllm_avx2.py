"""Run by vLLM's own Python: its OpenAI server, told that this CPU has neither AVX-512 nor AMX.

vLLM asks torch what the CPU has, and loads one of three libraries accordingly; no variable chooses between them. The
processes that it spawns run this file's beginning, too, as modules of that package do without `__main__`.
"""

from __future__ import annotations

import runpy

import torch

for _name in dir(torch.cpu):
    if _name.startswith(("_is_avx512", "_is_amx", "_is_vnni")):
        setattr(torch.cpu, _name, lambda: False)

if __name__ == "__main__":
    # Without alter_sys this file stays the main module, which a spawned process runs first.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
