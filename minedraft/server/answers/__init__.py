"""Answers on their way to clients: tokens become text, and messages.

May import: values, places, settings, core, engine, rpc, v1, text, models, process, observe, server.
"""
