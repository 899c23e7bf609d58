"""Forwards of few rows as captured CUDA graphs: capture, padded inputs, sizes, and a model that runs by them.

May import: values, places, core.blocks, models, workers.device, workers.pulse, kernels, execution.
"""
