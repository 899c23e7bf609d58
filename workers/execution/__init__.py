"""Runs any transformers model on packed spans over a paged KV cache.

May import: values, places, core.blocks, models, workers.device, workers.pulse, kernels.
"""
