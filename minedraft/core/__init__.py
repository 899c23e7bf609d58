"""Every scheduling decision, pure: requests, batches, rounds, KV blocks, the drafter's book.

May import: values.
"""
