"""Starts the other processes, shows their progress, stops them in order.

May import: values, places, settings, process, rpc, models, text.
"""
