"""What each process of ours does: log, say by its exit code how it ended, claim an address, end with its
parent, watch a child, tell systemd.

May import: values, places.
"""
