"""What every process does: log, exit with a documented code, claim an address, end with its parent, watch a
child, notify systemd.

May import: values, places.
"""
