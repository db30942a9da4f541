"""Bundles on NVIDIA GPUs: what must be installed, memory, CUDA graphs, and the decoder."""
