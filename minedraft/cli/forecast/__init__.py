"""Commands that say what would be: theory and simulation.

May import: values, places, security, settings, client, rpc, models, text, process, launch, bench, observe, theory,
vllm, sim, cli.
"""
