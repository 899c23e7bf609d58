"""CPU kernels in C++, called through plain C pointers; a row's result never depends on the other rows.

`kernels.NativeKernels` has those of a forward pass, `choosing.ChoosingKernels` those that choose tokens, with torch
tensors as arguments. Weights are packed once; keys and values
lie in blocks laid out as src/cache.h draws it, which is not how `execution.kvcache` lays them out: the
blocks' sizes are the same, the order of the numbers in one is not, and a freed block need not be cleared.

May import: values, models.cache, workers.pulse.
"""
