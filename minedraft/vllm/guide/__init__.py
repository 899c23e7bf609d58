"""What a user of the plugin is told: the flags that switch it on, and what is known not to work.

May import: values, places, core, engine, rpc, models, vllm.
"""
