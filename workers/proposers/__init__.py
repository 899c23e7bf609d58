"""Where drafts come from.

May import: values, core.blocks, execution, sampling, workers.sequence.
"""
