"""Proposers: the sources of drafts.

May import: values, core.blocks, execution, sampling, workers.sequence, workers.clock, workers.pulse.
"""
