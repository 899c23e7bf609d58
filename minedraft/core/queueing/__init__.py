"""Who takes part in a round and who waits: for a seat, for memory, or for the trial of a request under suspicion.

May import: values, core.
"""
