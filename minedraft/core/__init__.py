"""Every decision, pure: requests, batches, rounds, blocks of KV, what the drafter holds.

May import: values.
"""
