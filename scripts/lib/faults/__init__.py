"""The table of faults in the README."""
