"""Requests without a seat: how many may wait, and how long another one would.

May import: values, core.
"""
