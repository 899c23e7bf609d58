"""Model folders: the known ones and how they are built, what a folder must hold, the cache.

May import: values, process.
"""
