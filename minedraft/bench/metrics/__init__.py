"""What a benchmark measures: each metric once, as a pure function of the record of one run.

May import: values, client, theory, bench.
"""
