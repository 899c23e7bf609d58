"""The loop that runs the core's rounds on two workers, over any kind of link: asyncio, no gRPC.

May import: values, core.
"""
