"""The commands that users type.

May import: values, places, security, settings, client, rpc, models, text, process, launch, bench, observe, theory,
vllm, sim.
"""
