"""Quantization of weights and activations: calibration, smoothing, int8 and int4 codes."""
