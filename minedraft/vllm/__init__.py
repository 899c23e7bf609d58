"""Batch-parallel speculative decoding inside vLLM: a plugin, with our drafter in a process of its own.

vLLM verifies; two groups of its requests alternate, and while one is verified, our drafter drafts for the other one.
No other room imports vLLM, and nothing of vLLM is patched: `CONTRACTS.md` lists what is used of it. `groups.py`,
`desk.py`, `link.py` and `alternation.py` know no vLLM.

May import: values, places, core, engine, rpc, models.
"""
