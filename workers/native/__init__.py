"""CPU kernels in C++, called through plain C pointers; a row's result never depends on the other rows.

May import: values, models.cache.
"""
