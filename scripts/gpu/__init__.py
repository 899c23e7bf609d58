"""scripts/gpu_check: what a machine with one CUDA device can show, and what of it may be claimed."""
