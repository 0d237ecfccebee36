"""Quantized weights: the formats that GGUF files store them in."""
