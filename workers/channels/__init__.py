"""How tensors travel between the workers.

May import: values.
"""
