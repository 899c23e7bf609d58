"""vLLM in this process, with and without the plugin, and a drafter process for it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEDULER = "minedraft.vllm.scheduler.MineDraftScheduler"
PROPOSER = "minedraft.vllm.noop_proposer.NoopProposer"
MAX_LEN = 256

# Before vLLM is imported: one process, so that a test sees the scheduler, on one core.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_PLUGINS": "",
}


def plugin(address: str, num_drafts: int = 3, **settings: object) -> dict[str, Any]:
    """Return the three settings of vLLM that switch the plugin on."""
    return {
        "scheduler_cls": SCHEDULER,
        "speculative_config": {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": num_drafts},
        "additional_config": {
            "minedraft": {"drafter": address, "wait_ms": 10_000.0, "connect_timeout_s": 120, **settings}
        },
    }


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[Any]:
    """Run vLLM in float32; it ends with the block."""
    from vllm import LLM

    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": MAX_LEN,
        "max_num_seqs": 24,
        "block_size": 32,
        "disable_log_stats": False,
        "seed": 0,
    }
    llm = LLM(str(model), **(defaults | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def scheduler(llm: Any) -> Any:
    """Return the scheduler inside the engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def cut_prompts(llm: Any) -> set[str]:
    """Return the requests whose prompt is computed in more than one step; it fills up as the engine runs."""
    planner, cut = scheduler(llm), set()
    schedule = planner.schedule

    def noted(*args: Any, **options: Any) -> Any:
        output = schedule(*args, **options)
        requests = [planner.requests[name] for name in output.num_scheduled_tokens]
        cut.update(each.request_id for each in requests if each.num_computed_tokens < each.num_prompt_tokens)
        return output

    planner.schedule = noted
    return cut


def greedy(**changes: Any) -> Any:
    """Return vLLM's sampling parameters for 24 greedy tokens."""
    from vllm import SamplingParams

    return SamplingParams(**({"temperature": 0.0, "max_tokens": 24, "ignore_eos": True} | changes))


def tokens(outputs: Sequence[Any]) -> list[list[list[int]]]:
    """Return the token ids of every sample of every answer."""
    return [[list(sample.token_ids) for sample in answer.outputs] for answer in outputs]


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
    """Return the answers to prompts of token ids."""
    return llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)


def metric(llm: Any, name: str) -> float:
    """Return a counter of vLLM's own."""
    return sum(each.value for each in llm.get_metrics() if each.name == name)
