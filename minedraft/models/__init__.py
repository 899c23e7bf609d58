"""Model folders: the known models and how they are built, the checks of a folder, the cache.

May import: values, process.
"""
