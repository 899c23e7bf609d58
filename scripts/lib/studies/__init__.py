"""Measurements that answer one question each; scripts/bench has their commands."""
