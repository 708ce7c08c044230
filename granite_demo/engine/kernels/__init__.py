"""Fused decoder layers and their Triton kernels."""
