"""What the simulator says of the paper and of services at their limits."""
