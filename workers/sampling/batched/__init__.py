"""The choice of tokens for all rows of a forward together, on the device of the logits, with one copy to the host.

The laws and the random numbers are those of `choose` and `acceptance`, which decide row by row; so are the tokens, but
for the rounding of sums. Made for a GPU, where each operator is a launch and each number that the host reads is a wait.
`Sampler` is what workers use.

May import: values, text.grammars, workers.sequence, native, models.generation_config, sampling.
"""
