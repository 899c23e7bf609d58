"""From logits to tokens: processors, draws, acceptance.

`sampler.Sampler` is what workers use. It takes native kernels for all rows at once, or `choose` and `acceptance`,
which work on any device and are the reference.

May import: values, text.grammars, workers.sequence, native, models.generation_config.
"""
