"""The scheduler process: the service, its gRPC door, and the composition of both.

May import: values, places, settings, core, engine, rpc, v1, text, models, process, observe.
"""

from minedraft.process.serving import poll_in_place

poll_in_place()
