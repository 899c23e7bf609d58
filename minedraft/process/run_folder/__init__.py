"""The private folder of one running service, and what its processes tell each other there.

May import: values, places, process.
"""
