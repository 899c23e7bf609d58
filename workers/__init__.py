"""A worker process: drafter or verifier, each with a device of its own (installed as minedraft_workers).

May import: values, places, security, settings, rpc, v1, models, process, rounds, proposers, execution, sampling,
channels.
"""

from minedraft.process.serving import poll_in_place

poll_in_place()
