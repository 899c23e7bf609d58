"""What the simulator and the theory say of systems that are not here: the paper's, and services at their limits."""
