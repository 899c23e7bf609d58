"""The table of faults."""
