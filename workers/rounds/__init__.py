"""How a worker executes a scheduler's rounds: in one thread, each at most once, for one scheduler at a time.

May import: values, core.blocks, core.liveness, workers.pulse.
"""
