"""Many requests in each step on a CUDA GPU."""
