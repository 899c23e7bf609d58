"""Loads that change with the time, on the services that `minedraft.sim` simulates."""
