"""scripts/bench/peers: one load on this project's service and on other engines, in one interleaved run.

`cells` says what is measured, `prompts` with which token ids, `engines/` how each engine is started and asked,
`driving` in which order; `arrivals` turns arrival times into rates, `summary` repeats into medians, and `report`
and `plot` show them.
"""
