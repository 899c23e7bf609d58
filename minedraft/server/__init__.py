"""The scheduler process: the service, its gRPC door, and how they are put together.

May import: values, places, settings, core, engine, rpc, v1, text, models, process, observe.
"""
