"""Whatever arrives at a door, only typed errors leave it: messages made from the descriptors, and mutated bytes."""
