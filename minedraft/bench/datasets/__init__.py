"""Files of prompts, in the layouts that benchmarks of speculative decoding use.

May import: values, client, theory, bench.
"""
