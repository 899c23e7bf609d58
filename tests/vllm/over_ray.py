"""`python -m tests.vllm.over_ray JSON`: answers prompts with a target over two of Ray's actors, and prints the tokens.

vLLM refuses Ray on a CPU, as its platform for CPUs names no resource of Ray's. Here a platform of our own, found by its
entry point as any is, names Ray's "GPU", and Ray is told that this host has two of them: labels, which it lends one to
each actor. So the executor, its actors and its queues are the real ones, and only the devices are cores.
"""

from __future__ import annotations

import json
import os
import sys

import ray

from tests.vllm.engines import engine, generate, greedy, scheduler, tokens


def main() -> None:
    """Answer, and print."""
    asked = json.loads(sys.argv[1])
    os.environ |= {"VLLM_PLUGINS": "cpu_for_ray", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    with engine(asked["model"], tensor_parallel_size=2, distributed_executor_backend="ray", **asked["plugin"]) as llm:
        answers = tokens(generate(llm, asked["prompts"], greedy()))
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        told = {
            "executor": type(executor).__name__,
            "tokens": answers,
            "accepted": sum(scheduler(llm)._plugin.desk.accepted) if asked["plugin"] else 0,
        }
        print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
