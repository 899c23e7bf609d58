"""Random load on the whole service, as real processes, and what must hold under it; see `scripts/stress`."""
