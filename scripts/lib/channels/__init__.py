"""scripts/bench/channels: what a step costs by each carrier of tensors, with workers that compute nothing."""
