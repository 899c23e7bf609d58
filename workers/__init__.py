"""The two worker processes: drafter and verifier."""
