"""What the plugin shows of itself: counters in vLLM's /metrics, and a status route.

May import: values, places, core, engine, rpc, models, vllm.
"""
