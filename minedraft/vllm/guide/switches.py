"""The flags of vLLM that switch the plugin on."""

from __future__ import annotations

import json
from typing import Any

from minedraft.vllm.compatible import PROPOSER, SCHEDULERS, WORKER


def switching_flags(path: str, drafter: str, num_drafts: int, **settings: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Return the flags of vLLM's server that switch the plugin on.

    Args:
        path: "V1" or "V2", the model runner that vLLM uses.
        drafter: address of a running drafter.
        num_drafts: most drafts of a request in a round.
        settings: others of `PluginSettings`.
    """
    if path == "V1":
        method, worker = {"method": "custom_class", "model": PROPOSER}, []
    else:
        method, worker = {"method": "ngram_gpu"}, ["--worker-cls", WORKER]
    return [
        *("--scheduler-cls", SCHEDULERS[path], *worker),
        *("--speculative-config", json.dumps(method | {"num_speculative_tokens": num_drafts})),
        *("--additional-config", json.dumps({"minedraft": {"drafter": drafter, **settings}})),
    ]
