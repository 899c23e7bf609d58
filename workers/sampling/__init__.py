"""From logits to tokens: processors, draws, acceptance.

May import: values, workers.sequence.
"""
