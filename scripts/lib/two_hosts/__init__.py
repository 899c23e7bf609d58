"""Measures a verifier on another host: two network namespaces, and a wire that delays and drops packets."""
