"""The OpenAI-compatible door: a process of its own, which is a client of the service.

May import: values, places, security, settings, client, process, text.
"""

from minedraft.process.serving import poll_in_place

poll_in_place()
