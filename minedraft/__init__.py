"""MineDraft: batch-parallel speculative decoding."""
