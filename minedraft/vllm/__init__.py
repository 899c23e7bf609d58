"""Batch-parallel speculative decoding inside vLLM: a plugin, with our drafter in a process of its own.

vLLM verifies; two groups of its requests alternate, and while one is verified, our drafter drafts for the other one.
No other room imports vLLM, and nothing of vLLM is patched: `docs/CONTRACTS.md` lists what is used of it, and
`minedraft vllm-doctor` looks it up. `groups.py`, `desk.py`, `link.py` and `alternation.py` know no vLLM.

    minedraft-worker drafter --model DIR --listen unix:/run/drafter.sock
    vllm serve TARGET --scheduler-cls minedraft.vllm.scheduler.MineDraftScheduler
        --speculative-config '{"method": "custom_class", "num_speculative_tokens": 4,
                               "model": "minedraft.vllm.noop_proposer.NoopProposer"}'
        --additional-config '{"minedraft": {"drafter": "unix:/run/drafter.sock"}}'

For the model runner V2, which GPUs have: `--scheduler-cls minedraft.vllm.async_scheduler.MineDraftAsyncScheduler`,
`--worker-cls minedraft.vllm.worker.MineDraftWorker`, and the method `ngram_gpu` without a model.

May import: values, places, core, engine, rpc, models.
"""
