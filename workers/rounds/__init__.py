"""How a worker executes a scheduler's rounds: in one thread, each at most once, in a session for each scheduler.

May import: values, core.blocks, core.liveness, workers.pulse.
"""
