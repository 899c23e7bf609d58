"""Compares modes on a running service.

May import: values, client, theory.
"""
