"""What each process of ours does: claim an address, end with its parent, tell systemd.

May import: values, places.
"""
