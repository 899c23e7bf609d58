"""The steps of scripts/gpu_check, one module each, and what they measure with."""
