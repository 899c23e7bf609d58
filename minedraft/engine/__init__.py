"""The loop that runs the core's rounds on two workers, whatever carries its commands: asyncio, no gRPC.

May import: values, core.
"""
