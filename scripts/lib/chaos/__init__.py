"""Load, faults and checks for `scripts/chaos` and `scripts/soak`."""
