"""The fault matrix: what can go wrong, what happens then, and the test that shows it. See `cases.py`."""
