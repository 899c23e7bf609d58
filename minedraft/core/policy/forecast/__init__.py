"""What rounds cost and what drafts bring, learnt from events; and what each choice is expected to give. Pure.

May import: values, core.
"""
