"""Commands for what of MineDraft runs inside other engines.

May import: values, places, security, settings, client, rpc, models, text, process, launch, bench, observe, theory,
vllm, sim, cli.
"""
