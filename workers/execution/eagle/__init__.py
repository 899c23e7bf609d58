"""Drafting heads: their weights, what one forward computes, and the head as a model over a paged cache.

May import: values, places, core.blocks, models, workers.device, workers.pulse, kernels, execution.
"""
