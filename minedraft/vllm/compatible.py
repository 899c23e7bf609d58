"""What must hold before the plugin runs: vLLM's version and names, and settings that go together."""

from __future__ import annotations

import logging
from typing import Any

from minedraft.errors import ConfigError, ConfigErrors
from minedraft.vllm.contracts import check_contracts, installed_version, is_supported, missing, supported_range

logger = logging.getLogger("minedraft.vllm")

PROPOSER = "minedraft.vllm.noop_proposer.NoopProposer"
WORKER = "minedraft.vllm.worker.MineDraftWorker"
SCHEDULERS = {
    "V1": "minedraft.vllm.scheduler.MineDraftScheduler",
    "V2": "minedraft.vllm.async_scheduler.MineDraftAsyncScheduler",
}


def register() -> None:
    """The entry point `vllm.general_plugins`, which vLLM calls in every process, perhaps more than once. Nothing is
    changed: the plugin is switched on by vLLM's own settings. A version out of range is only named here."""
    found = installed_version()
    if found is not None and not is_supported(found):
        logger.warning("MineDraft's plugin is made for vLLM %s, not %s", supported_range(), found)


def assert_compatible(config: Any, path: str) -> None:  # noqa: ANN401 - vLLM's VllmConfig
    """Raise unless the plugin can run.

    Args:
        config: vLLM's `VllmConfig`. path: "V1" or "V2", the model runner that the scheduler is made for.

    Raises:
        ConfigErrors: vLLM is of another version, or lacks a name; or these settings do not go together.
    """
    errors = [*_of_installation(path), *_of_settings(config, path)]
    if errors:
        raise ConfigErrors(errors)


def _of_installation(path: str) -> list[ConfigError]:
    found = installed_version()
    if found is None or not is_supported(found):
        return [ConfigError("vllm", found, f"the plugin is made for vLLM {supported_range()}")]
    return [
        ConfigError("vllm", found, f"it has no {name}; see minedraft vllm-doctor")
        for name in missing(check_contracts(), path)
    ]


def _of_settings(config: Any, path: str) -> list[ConfigError]:  # noqa: ANN401
    speculative, parallel, model = config.speculative_config, config.parallel_config, config.model_config
    scheduler = SCHEDULERS[path]
    runner = "V2" if config.use_v2_model_runner else "V1"
    method = None if speculative is None else speculative.method
    dynamic = None if speculative is None else speculative.num_speculative_tokens_per_batch_size
    rules = [
        ("scheduler_cls", scheduler, runner == path, f"vLLM runs model runner {runner}: use {SCHEDULERS[runner]}"),
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, parallel.pipeline_parallel_size == 1,
         "with the plugin it must be 1: drafts reach the last stage only"),
        ("runner", model.runner_type, model.runner_type == "generate", "the plugin needs a model that generates"),
        ("enable_prompt_embeds", model.enable_prompt_embeds, not model.enable_prompt_embeds,
         "a prompt without token ids cannot be drafted for"),
        ("num_speculative_tokens_per_batch_size", dynamic, not dynamic,
         "the plugin sets the number of drafts: additional_config.minedraft.draft_len"),
    ]  # fmt: skip
    if path == "V1":
        rules += [
            ("speculative_config.method", method, method == "custom_class", "must be custom_class"),
            ("speculative_config.model", speculative and speculative.model,
             speculative is None or speculative.model == PROPOSER, f"must be {PROPOSER}"),
        ]  # fmt: skip
    else:
        worker = parallel.worker_cls
        rules += [
            ("speculative_config.method", method, method == "ngram_gpu",
             "must be ngram_gpu, whose drafts ours replace"),
            ("worker_cls", worker, worker == WORKER, f"scheduler and worker go together: use {WORKER}"),
            ("async_scheduling", config.scheduler_config.async_scheduling,
             bool(config.scheduler_config.async_scheduling), "must be on"),
        ]  # fmt: skip
    return [ConfigError(name, value, limit) for name, value, holds, limit in rules if not holds]
