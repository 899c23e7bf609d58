"""How much to draft, which drafts to verify, which mode to run: decisions as objects, pure.

May import: values, core.
"""
