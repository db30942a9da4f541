"""Weights kept on disk as the kernels of this CPU want them."""
