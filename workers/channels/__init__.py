"""Token channels: carriers of tensors between the workers.

May import: values, places.
"""
