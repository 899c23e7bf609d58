"""Folders of drafting heads: what they hold, and whether they fit their target.

May import: values, process, models.
"""
