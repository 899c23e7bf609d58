"""Starts the other processes, shows their progress, starts them again when they die or hang, stops them in order.

May import: values, places, security, settings, core.liveness, process, rpc, models, text.
"""
